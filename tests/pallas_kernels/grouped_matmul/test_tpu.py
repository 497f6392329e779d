"""What only the TPU kernel promises: no copy races another, and it refuses what it cannot do."""

import jax
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import NoImplementation, grouped_matmul
from pallas_kernels.grouped_matmul import tpu
from pallas_kernels.grouped_matmul.problem import describe
from pallas_kernels.grouped_matmul.tpu_tuning import TpuTiles
from tests.pallas_kernels.on_chip import interpret_of


@pytest.mark.interpreted
@pytest.mark.parametrize("depth", [128, 256])
def test_no_copy_races_another(depth, call_of, multiply, monkeypatch, has_raced, assert_close):
    call = call_of((3, 17, 0, 9), depth=depth)
    expected = multiply("reference", call)
    monkeypatch.setattr(
        TpuTiles, "heuristic", staticmethod(lambda _: TpuTiles(rows=8, depth=128, columns=128))
    )
    arrays = (call.x_TD, call.w_EDF, call.group_sizes_E, None)
    problem = describe(*arrays, None)
    raced = interpret_of("tpu", pltpu.InterpretParams(detect_races=True))
    run = jax.jit(lambda *arrays: tpu.grouped_matmul(problem, *arrays, interpret=raced))
    out = np.asarray(jax.block_until_ready(run(*jax.block_until_ready(arrays))))
    assert_close(out, expected, near_zero="cancelled sums")
    assert not has_raced()


@pytest.mark.parametrize(("name", "depth", "columns"), [("D", 100, 128), ("F", 128, 192)])
def test_sizes_that_are_no_whole_registers_are_refused(name, depth, columns, call_of):
    call = call_of((3, 4), num_rows=8, depth=depth, columns=columns)
    with pytest.raises(NoImplementation, match=rf"tpu: {name} = 1\d\d is not a multiple of 128"):
        grouped_matmul(call.x_TD, call.w_EDF, call.group_sizes_E, implementation="tpu")
