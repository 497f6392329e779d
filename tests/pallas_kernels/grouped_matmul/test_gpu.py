"""The Hopper kernel against the meaning, on small calls."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import NoImplementation, grouped_matmul


@pytest.fixture(scope="session")
def check(call_of, assert_equals_the_reference):
    def equals_the_reference(sizes, num_rows=72, depth=128, columns=128, **options):
        from pallas_kernels.grouped_matmul import gpu_kernel

        call = call_of(sizes, num_rows=num_rows, depth=depth, columns=columns, dtype="bfloat16")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gpu_kernel, "VISIT_BLOCK", 2)
            assert_equals_the_reference("gpu", call, **options)

    return equals_the_reference


@pytest.mark.interpreted
@pytest.mark.parametrize("sizes", [(3, 17, 0, 9), (64, 0, 0, 8), (-5, 1, 2**31 - 1, 9)], ids=str)
def test_gpu_equals_the_reference(sizes, check):
    check(sizes)


@pytest.mark.interpreted
@given(sizes=st.lists(st.integers(-4, 20), min_size=4, max_size=4))
@settings(max_examples=8, deadline=None)
def test_any_sizes(sizes, check):
    check(sizes, num_rows=40)


@pytest.mark.interpreted
def test_rows_that_are_no_multiple_of_a_copy(check):
    check((63, 0, 1), num_rows=67)


@pytest.mark.interpreted
@pytest.mark.parametrize("columns", [pytest.param(256, marks=pytest.mark.slow), 384])
def test_tiles_of_two_warpgroups(columns, check):
    # Four visits and one to the padding: three blocks of visits over one or three strips.
    check((5, 207, 130), num_rows=360, columns=columns)


@pytest.mark.interpreted
@pytest.mark.parametrize("columns", [192, pytest.param(64, marks=pytest.mark.slow)])
def test_sizes_that_are_half_registers_of_a_tpu(columns, check):
    # A tile that is all its group's, parts of tiles, and padding.
    check((64, 0, 3, 5), num_rows=136, depth=192, columns=columns)


@pytest.mark.interpreted
def test_sums_in_float32(check):
    check((3, 60, 0, 5), depth=512, preferred_element_type="float32")


@pytest.mark.interpreted
def test_a_row_is_the_same_bit_for_bit_wherever_it_lies(call_of, multiply):
    call = call_of((18, 18, 18, 18), num_rows=72, depth=128, columns=128, dtype="bfloat16")
    row, found = np.asarray(call.x_TD[0]), []
    for sizes, places in [((3, 68, 0, 1), (3, 8, 40, 70)), ((0, 72, 0, 0), (0, 33, 71))]:
        x = np.random.default_rng(len(places)).normal(size=call.x_TD.shape).astype(row.dtype)
        x[list(places)] = row
        moved = type(call)(
            x_TD=jnp.asarray(x), w_EDF=call.w_EDF, group_sizes_E=jnp.asarray(sizes, jnp.int32)
        )
        found.extend(multiply("gpu", moved)[list(places)])
    assert all((out == found[0]).all() for out in found)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ({"dtype": "float32"}, r"gpu: dtype of x_TD = float32 is not bfloat16"),
        ({"dtype": "bfloat16", "w_dtype": "int8"}, r"gpu: weights of int8 with a scale are not"),
        ({"dtype": "bfloat16", "depth": 96}, r"gpu: D = 96 is not a multiple of 64"),
        ({"dtype": "bfloat16", "columns": 32}, r"gpu: F = 32 is not a multiple of 64"),
    ],
)
def test_what_it_cannot_do_is_refused(kind, message, call_of):
    call = call_of((3, 4), num_rows=8, **kind)
    with pytest.raises(NoImplementation, match=message):
        grouped_matmul(
            call.x_TD,
            call.w_EDF,
            call.group_sizes_E,
            w_scale_EF=call.w_scale_EF,
            implementation="gpu",
        )
