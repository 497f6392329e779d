"""A call that contradicts the contract is refused with the value and what is allowed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import init_kv_pages, ragged_paged_attention

ARRAYS = {
    "q_TNH": np.zeros((4, 6, 16), np.float32),
    "k_TKH": np.zeros((4, 2, 16), np.float32),
    "v_TKH": np.zeros((4, 2, 16), np.float32),
    "kv_pages": init_kv_pages(5, 8, 2, 16, "float32"),
    "kv_lens_S": np.zeros(3, np.int32),
    "page_table_SM": np.zeros((3, 2), np.int32),
    "cu_q_lens_S1": np.zeros(4, np.int32),
    "distribution_3": np.zeros(3, np.int32),
}
WRONG = [
    ({"q_TNH": np.zeros((4, 6), np.float32)}, r"shape of q_TNH = \(4, 6\) .* \[T, N, H\]"),
    ({"q_TNH": np.zeros((4, 6, 16), np.int32)}, r"dtype of q_TNH = int32 .* float32 or bfloat16"),
    ({"q_TNH": np.zeros((4, 6, 8), np.float32)}, r"head dim of q_TNH = 8 .* 16, as paged"),
    ({"q_TNH": np.zeros((4, 5, 16), np.float32)}, r"query heads = 5 .* multiple of the 2 kv heads"),
    ({"k_TKH": np.zeros((4, 3, 16), np.float32)}, r"shape of k_TKH = \(4, 3, 16\) .* \(4, 2, 16\)"),
    ({"v_TKH": np.zeros((3, 2, 16), np.float32)}, r"shape of v_TKH = \(3, 2, 16\)"),
    ({"v_TKH": np.zeros((4, 2, 16), np.int8)}, r"dtype of v_TKH = int8 .* a float dtype"),
    ({"v_TKH": None}, r"one of k_TKH and v_TKH = None .* None together"),
    ({"kv_lens_S": np.zeros(2, np.int32)}, r"shape of kv_lens_S = \(2,\) .* \(3,\)"),
    ({"kv_lens_S": np.zeros(3, np.int16)}, r"dtype of kv_lens_S = int16 .* int32"),
    ({"page_table_SM": np.zeros(3, np.int32)}, r"shape of page_table_SM = \(3,\) .* \[S, M\]"),
    ({"page_table_SM": np.zeros((3, 2), np.int8)}, r"dtype of page_table_SM = int8 .* int32"),
    ({"cu_q_lens_S1": np.zeros(3, np.int32)}, r"shape of cu_q_lens_S1 = \(3,\) .* \(4,\)"),
    ({"distribution_3": np.zeros(2, np.int32)}, r"shape of distribution_3 = \(2,\) .* \(3,\)"),
    ({"kv_pages": init_kv_pages(5, 8, 2, 16, "int8")}, r"k_scale_K = None .* given for int8 pages"),
    ({"sinks_N": np.zeros(5, np.float32)}, r"shape of sinks_N = \(5,\) .* \(6,\)"),
    ({"k_scale_K": np.zeros(3, np.float32)}, r"shape of k_scale_K = \(3,\) .* \(2,\)"),
    ({"v_scale_K": np.zeros(2, np.int32)}, r"dtype of v_scale_K = int32 .* a float dtype"),
    ({"scale": float("nan")}, r"scale = nan is not finite"),
    ({"scale": 1e40}, r"scale = 1e\+40 is not finite in float32"),
    ({"sliding_window": 0}, r"sliding_window = 0 is not None or a whole number from 1 to 10737418"),
    ({"sliding_window": 2.5}, r"sliding_window = 2.5 is not None or a whole number"),
    ({"sliding_window": 2**31}, r"sliding_window = 2147483648 is not None or a whole number"),
    ({"logit_softcap": 1e-50}, r"logit_softcap = 1e-50 is not None or a finite number above 0"),
    ({"logit_softcap": -1.0}, r"logit_softcap = -1.0 is not None or a finite number above 0"),
    ({"implementation": "cuda"}, r"implementation = 'cuda' is not one of None, tpu, gpu, xla"),
]


def attend(**changes):
    call = {**ARRAYS, "scale": 1.0, **changes}
    arrays = {
        name: jnp.asarray(x) if isinstance(x, np.ndarray) else x
        for name, x in call.items()
        if name in ARRAYS
    }
    return ragged_paged_attention(
        *arrays.values(), **{name: x for name, x in call.items() if name not in ARRAYS}
    )


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_wrong_argument_is_named_with_its_value(changes, message):
    with pytest.raises(ValueError, match=message):
        attend(**changes)


ROWS = {
    "kv_lens_S": np.array([1, 9, 0], np.int32),
    "page_table_SM": np.array([[1, 0], [2, 3], [0, 0]], np.int32),
    "cu_q_lens_S1": np.array([0, 1, 4, 4], np.int32),
    "distribution_3": np.array([1, 1, 3], np.int32),
}
CONTRADICTIONS = [
    ("distribution_3", 2, 4, r"distribution_3 = \[1, 1, 4\] .* rising, from 0 to 3 rows"),
    ("distribution_3", 1, 0, r"distribution_3 = \[1, 0, 3\] .* rising"),
    ("kv_lens_S", 1, 17, r"kv_lens_S\[1\] = 17 .* 0 to 16, what 2 pages of 8 hold"),
    ("kv_lens_S", 0, -1, r"kv_lens_S\[0\] = -1 .* 0 to 16"),
    ("kv_lens_S", 1, 2, r"new tokens of cu_q_lens_S1\[1\] = 3 .* no more than kv_lens_S"),
    ("cu_q_lens_S1", 3, 5, r"cu_q_lens_S1\[3\] = 5 .* rising, from 0 to 4 tokens"),
    ("cu_q_lens_S1", 2, 0, r"cu_q_lens_S1\[2\] = 0 .* rising"),
    ("page_table_SM", (1, 1), 5, r"page_table_SM\[1, 1\] = 5 .* 0 \(none\) to 4"),
    ("page_table_SM", (0, 0), -2, r"page_table_SM\[0, 0\] = -2 .* 0 \(none\) to 4"),
]


def with_number(name, place, number):
    changed = ROWS[name].copy()
    changed[place] = number
    return {**ROWS, name: changed}


def test_rows_that_fit_each_other_are_served():
    out, _ = attend(**ROWS)
    assert out.shape == (4, 6, 16)


@pytest.mark.parametrize(
    ("name", "place", "number", "message"),
    CONTRADICTIONS,
    ids=[message for *_, message in CONTRADICTIONS],
)
def test_a_number_that_contradicts_the_others_is_refused_where_it_is_known(
    name, place, number, message
):
    with pytest.raises(ValueError, match=message):
        attend(**with_number(name, place, number))


def test_a_number_that_is_not_known_yet_is_not_refused():
    rows = with_number("page_table_SM", (1, 1), 5)
    out, _ = jax.jit(lambda rows: attend(**rows))(rows)
    assert out.shape == (4, 6, 16)


KNOWN_ALONE = [x for x in CONTRADICTIONS if x[0] == "distribution_3" or x[3].endswith("0 to 16")]
KNOWN_ALONE += [("cu_q_lens_S1", 3, 5, r"cu_q_lens_S1\[3\] = 5 .* rising, from 0 to 4 tokens")]


@pytest.mark.parametrize(
    ("name", "place", "number", "message"),
    KNOWN_ALONE,
    ids=[message for *_, message in KNOWN_ALONE],
)
def test_a_constant_of_a_program_is_refused_whatever_else_is_traced(name, place, number, message):
    rows = with_number(name, place, number)
    known = {key: rows[key] for key in (name, "distribution_3")}
    traced = {key: x for key, x in rows.items() if key not in known}

    def program(traced):
        arrays = {**jax.tree.map(jnp.asarray, ARRAYS), **traced, **known}
        return ragged_paged_attention(**arrays, scale=1.0)[0]

    with pytest.raises(ValueError, match=message):
        jax.eval_shape(program, traced)


def test_what_an_idle_row_and_one_beyond_the_batch_say_is_not_looked_at():
    rows = with_number("page_table_SM", (2, 0), -3)
    rows["distribution_3"] = np.array([1, 1, 2], np.int32)
    rows["kv_lens_S"] = np.array([1, 9, -5], np.int32)
    out, _ = attend(**rows)
    assert out.shape == (4, 6, 16)
