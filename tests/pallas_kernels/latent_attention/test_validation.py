"""A call that contradicts the contract is refused with the value and what is allowed."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import init_latent_pages, latent_attention, write_latents

ARRAYS = {
    "q_latent_TNR": np.zeros((4, 6, 16), np.float32),
    "q_rope_TNr": np.zeros((4, 6, 8), np.float32),
    "latent_TR": np.zeros((4, 16), np.float32),
    "rope_Tr": np.zeros((4, 8), np.float32),
    "latent_pages": init_latent_pages(5, 8, 16, 8, "float32"),
    "kv_lens_S": np.zeros(3, np.int32),
    "page_table_SM": np.zeros((3, 2), np.int32),
    "cu_q_lens_S1": np.zeros(4, np.int32),
    "distribution_3": np.zeros(3, np.int32),
}
WRONG = [
    ({"q_latent_TNR": np.zeros((4, 6), np.float32)}, r"shape of q_latent_TNR = .* \[T, N, R\]"),
    ({"q_latent_TNR": np.zeros((4, 0, 16), np.float32)}, r"shape of q_latent_TNR = \(4, 0, 16\)"),
    ({"q_latent_TNR": np.zeros((4, 6, 16), np.int32)}, r"dtype of q_latent_TNR = int32 .* bfloat"),
    ({"q_latent_TNR": np.zeros((4, 6, 8), np.float32)}, r"latent rank .* = 8 .* 16, as paged"),
    ({"q_rope_TNr": np.zeros((4, 6, 16), np.float32)}, r"shape of q_rope_TNr = .* \(4, 6, 8\)"),
    ({"q_rope_TNr": np.zeros((4, 5, 8), np.float32)}, r"shape of q_rope_TNr = \(4, 5, 8\)"),
    ({"q_rope_TNr": np.zeros((4, 6, 8), np.float16)}, r"dtype of q_rope_TNr = float16 .* float32"),
    ({"latent_TR": np.zeros((4, 8), np.float32)}, r"shape of latent_TR = \(4, 8\) .* \(4, 16\)"),
    ({"latent_TR": np.zeros((3, 16), np.float32)}, r"shape of latent_TR = \(3, 16\)"),
    ({"rope_Tr": np.zeros((4, 16), np.float32)}, r"shape of rope_Tr = \(4, 16\) .* \(4, 8\)"),
    ({"rope_Tr": np.zeros((4, 8), np.int8)}, r"dtype of rope_Tr = int8 .* a float dtype"),
    ({"rope_Tr": None}, r"one of latent_TR and rope_Tr = None .* None together"),
    ({"kv_lens_S": np.zeros(2, np.int32)}, r"shape of kv_lens_S = \(2,\) .* \(3,\)"),
    ({"kv_lens_S": np.zeros(3, np.int16)}, r"dtype of kv_lens_S = int16 .* int32"),
    ({"page_table_SM": np.zeros(3, np.int32)}, r"shape of page_table_SM = \(3,\) .* \[S, M\]"),
    ({"cu_q_lens_S1": np.zeros(3, np.int32)}, r"shape of cu_q_lens_S1 = \(3,\) .* \(4,\)"),
    ({"distribution_3": np.zeros(2, np.int32)}, r"shape of distribution_3 = \(2,\) .* \(3,\)"),
    ({"scale": float("inf")}, r"scale = inf is not finite"),
    ({"implementation": "cuda"}, r"implementation = 'cuda' is not one of None, tpu, gpu, xla"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_wrong_argument_is_named_with_its_value(changes, message):
    call = {**ARRAYS, "scale": 1.0, **changes}
    arrays = {
        name: jnp.asarray(x) if isinstance(x, np.ndarray) else x
        for name, x in call.items()
        if name in ARRAYS
    }
    options = {name: x for name, x in call.items() if name not in ARRAYS}
    with pytest.raises(ValueError, match=message):
        latent_attention(*arrays.values(), **options)


NOT_WRITTEN = ("q_latent_TNR", "q_rope_TNr", "scale", "implementation")
WRONG_TO_WRITE = [(x, said) for x, said in WRONG if not {*x} & {*NOT_WRITTEN, "latent_TR"}]
WRONG_TO_WRITE += [
    ({"rope_Tr": np.zeros((3, 8), np.float32)}, r"shape of rope_Tr = \(3, 8\) .* \(4, 8\)"),
    ({"latent_TR": np.zeros((4, 8), np.float32)}, r"shape of latent_TR = \(4, 8\) .* \(4, 16\)"),
    ({"latent_TR": np.zeros(16, np.float32)}, r"shape of latent_TR = \(16,\) .* \[T, R\]"),
    ({"kv_lens_S": np.array([17, 0, 0], np.int32)}, r"kv_lens_S\[0\] = 17 .* 0 to 16"),
    ({"cu_q_lens_S1": np.array([0, 2, 1, 1], np.int32)}, r"cu_q_lens_S1\[2\] = 1 .* rising"),
    ({"distribution_3": np.array([0, 0, 4], np.int32)}, r"distribution_3 = \[0, 0, 4\] .* 3 rows"),
]


@pytest.mark.parametrize(
    ("changes", "message"), WRONG_TO_WRITE, ids=[message for _, message in WRONG_TO_WRITE]
)
def test_a_wrong_argument_of_a_write_is_named_with_its_value(changes, message):
    call = {**ARRAYS, "distribution_3": np.array([0, 0, 3], np.int32), **changes}
    arrays = {
        name: jnp.asarray(x) if isinstance(x, np.ndarray) else x
        for name, x in call.items()
        if name not in NOT_WRITTEN
    }
    with pytest.raises(ValueError, match=message):
        write_latents(**arrays)


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        ((0, 8, 16, 8, "float32"), r"num_pages = 0 is not 1 or more"),
        ((5, 0, 16, 8, "float32"), r"page_size = 0 is not 1 or more"),
        ((5, 8, 0, 8, "float32"), r"latent_rank = 0 is not 1 or more"),
        ((5, 8, 16, 0, "float32"), r"rope_dim = 0 is not 1 or more"),
        ((5, 8, 16, 8, "int8"), r"dtype = int8 is not one of float32, bfloat16"),
    ],
)
def test_a_wrong_pool_is_named_with_its_value(pool, message):
    with pytest.raises(ValueError, match=message):
        init_latent_pages(*pool)
