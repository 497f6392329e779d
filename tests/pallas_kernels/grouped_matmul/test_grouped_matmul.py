"""Every implementation means what the reference means, and the reference what NumPy says."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

IMPLEMENTATIONS = ["xla", pytest.param("tpu", marks=pytest.mark.interpreted)]
SIZES = {
    "even": (10, 10, 10, 10),
    "ragged, with padding": (3, 17, 1, 9),
    "empty first, last and between": (0, 0, 12, 0, 20, 0),
    "one takes all": (0, 40, 0),
    "one group": (33,),
    "nothing at all": (0, 0, 0),
    "one row": (0, 1, 0),
    "on the borders of tiles": (8, 16, 0, 8),
    "many": tuple(i % 3 for i in range(40)),
}
IMPOSSIBLE = {
    "negative sizes": (-5, 7, -1, 6),
    "more rows than there are": (30, 30, 5),
    "sums beyond int32": (2**31 - 1, 2**31 - 1, 4),
    "the least int32": (-(2**31), 11, -(2**31)),
}


def by_numpy(call):
    x, w = (np.asarray(a, np.float64) for a in (call.x_TD, call.w_EDF))
    if call.w_scale_EF is not None:
        w = w * np.asarray(call.w_scale_EF, np.float64)[:, None, :]
    out, start = np.zeros((x.shape[0], w.shape[2])), 0
    for size, matrix in zip(np.asarray(call.group_sizes_E).tolist(), w, strict=True):
        end = min(start + max(size, 0), x.shape[0])
        out[start:end] = x[start:end] @ matrix
        start = end
    return out


@pytest.mark.parametrize("sizes", [*SIZES.values(), *IMPOSSIBLE.values()], ids=str)
def test_the_reference_says_what_numpy_says(sizes, call_of, multiply, assert_close):
    call = call_of(sizes)
    assert_close(multiply("reference", call), by_numpy(call), near_zero="cancelled sums")


@pytest.mark.parametrize("w_dtype", ["int8", "float8_e4m3fn", "float8_e5m2"])
def test_the_reference_scales_columns(w_dtype, call_of, multiply, assert_close):
    call = call_of((3, 17, 0, 9), w_dtype=w_dtype)
    assert_close(multiply("reference", call), by_numpy(call), near_zero="cancelled sums")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("sizes", [*SIZES.values(), *IMPOSSIBLE.values()], ids=str)
def test_equals_the_reference(sizes, implementation, call_of, assert_equals_the_reference):
    assert_equals_the_reference(implementation, call_of(sizes))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("result", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_dtype(dtype, result, implementation, call_of, assert_equals_the_reference):
    call = call_of((3, 17, 0, 9), dtype=dtype)
    assert_equals_the_reference(implementation, call, preferred_element_type=result)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("w_dtype", ["int8", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scaled_weights(dtype, w_dtype, implementation, call_of, assert_equals_the_reference):
    call = call_of((3, 17, 0, 9), dtype=dtype, w_dtype=w_dtype)
    assert_equals_the_reference(implementation, call)


@pytest.mark.parametrize(
    ("num_rows", "depth", "columns"), [(1, 64, 48), (7, 100, 130), (65, 256, 384)]
)
def test_xla_takes_any_size(num_rows, depth, columns, call_of, assert_equals_the_reference):
    call = call_of((num_rows // 2, 0, 1), num_rows=num_rows, depth=depth, columns=columns)
    assert_equals_the_reference("xla", call)


any_sizes = given(sizes=st.lists(st.integers(-4, 30), min_size=5, max_size=5))


@any_sizes
@settings(max_examples=20, deadline=None)
def test_xla_equals_the_reference_on_any_sizes(sizes, call_of, assert_equals_the_reference):
    assert_equals_the_reference("xla", call_of(sizes))


@pytest.mark.interpreted
@pytest.mark.parametrize(
    ("dtype", "w_dtype"), [("float32", None), ("bfloat16", None), ("bfloat16", "float8_e4m3fn")]
)
@any_sizes
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
def test_tpu_equals_the_reference_on_any_sizes_without_a_race(
    dtype, w_dtype, sizes, call_of, assert_equals_the_reference, has_raced
):
    races = pltpu.InterpretParams(detect_races=True)
    call = call_of(sizes, dtype=dtype, w_dtype=w_dtype)
    assert_equals_the_reference("tpu", call, interpret=races)
    assert not has_raced()


@pytest.mark.parametrize("implementation", ["reference", *IMPLEMENTATIONS])
def test_padding_is_zero_and_no_nan_comes_through(implementation, call_of, multiply):
    out = multiply(implementation, call_of((5, 0, 6)))
    assert np.isfinite(out).all()
    assert (out[11:] == 0).all()
    assert (out[:11] != 0).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_is_the_same_bit_for_bit_wherever_it_lies(dtype, implementation, call_of, multiply):
    """One program, one row and its matrix, and every arrangement of the others."""
    call = call_of((10, 10, 10, 10), dtype=dtype)
    row, group = np.asarray(call.x_TD[13]), 1
    found = []
    for sizes in [(10, 10, 10, 10), (0, 1, 0, 0), (0, 40, 0, 0), (39, 1, 0, 0), (3, 20, 17, 0)]:
        first, last = sum(sizes[:group]), sum(sizes[: group + 1]) - 1
        for place in {first, (first + last) // 2, last}:
            rng = np.random.default_rng(place)
            x = rng.normal(size=call.x_TD.shape).astype(row.dtype)
            x[place] = row
            moved = type(call)(
                x_TD=jnp.asarray(x),
                w_EDF=call.w_EDF,
                group_sizes_E=jnp.asarray(sizes, jnp.int32),
            )
            found.append(multiply(implementation, moved)[place])
    assert all((out == found[0]).all() for out in found)
