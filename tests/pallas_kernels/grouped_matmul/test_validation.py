"""A call that contradicts the contract is refused with the value and what is allowed."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import grouped_matmul

CALL = {
    "x_TD": jax.ShapeDtypeStruct((4, 128), jnp.float32),
    "w_EDF": jax.ShapeDtypeStruct((3, 128, 256), jnp.float32),
    "group_sizes_E": jax.ShapeDtypeStruct((3,), jnp.int32),
    "w_scale_EF": None,
}


def array(shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


WRONG = [
    ({"x_TD": array((4,))}, r"shape of x_TD = \(4,\) .* \[T, D\]"),
    ({"x_TD": array((0, 128))}, r"shape of x_TD = \(0, 128\) .* \[T, D\]"),
    ({"x_TD": array((4, 128), "float16")}, r"dtype of x_TD = float16 .* float32 or bfloat16"),
    ({"w_EDF": array((3, 64, 256))}, r"shape of w_EDF = \(3, 64, 256\) .* \[E, 128, F\]"),
    ({"w_EDF": array((128, 256))}, r"shape of w_EDF = \(128, 256\) .* \[E, 128, F\]"),
    ({"w_EDF": array((3, 128, 256), "bfloat16")}, r"dtype of w_EDF = bfloat16 .* float32 as x_TD"),
    ({"w_EDF": array((3, 128, 256), "int8")}, r"dtype of w_EDF = int8 .* with w_scale_EF, int8 or"),
    ({"group_sizes_E": array((4,), "int32")}, r"shape of group_sizes_E = \(4,\) .* \(3,\)"),
    ({"group_sizes_E": array((3,))}, r"dtype of group_sizes_E = float32 .* int32"),
    ({"w_scale_EF": array((3, 256))}, r"with w_scale_EF = float32 .* int8 or float8_e4m3fn"),
    (
        {"w_EDF": array((3, 128, 256), "int8"), "w_scale_EF": array((3,))},
        r"shape of w_scale_EF = \(3,\) .* \(3, 256\)",
    ),
    (
        {"w_EDF": array((3, 128, 256), "int8"), "w_scale_EF": array((3, 256), "bfloat16")},
        r"dtype of w_scale_EF = bfloat16 .* float32",
    ),
    ({"preferred_element_type": "int32"}, r"preferred_element_type = int32 .* float32 or bfloat16"),
    ({"x_TD": array((2**30, 128))}, r"T \* E = 3221225472 .* below 2\*\*31"),
    ({"implementation": "cuda"}, r"implementation = 'cuda' is not one of None, tpu, gpu, xla"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_wrong_argument_is_named_with_its_value(changes, message):
    call = {**CALL, **changes}
    options = {name: x for name, x in call.items() if name not in CALL}
    arrays = {name: x for name, x in call.items() if name in CALL}
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda arrays: grouped_matmul(**arrays, **options), arrays)
