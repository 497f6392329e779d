"""Tiles divide their problems and fit into their memories, and the table comes before the guess."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import tile_table
from pallas_kernels.dispatch import NoImplementation
from pallas_kernels.grouped_matmul.bench import OPERATION
from pallas_kernels.grouped_matmul.gpu_tuning import GpuTiles, gpu_tiles_for
from pallas_kernels.grouped_matmul.problem import Problem, describe
from pallas_kernels.grouped_matmul.refusals import refuse_tpu
from pallas_kernels.grouped_matmul.tpu_tuning import VMEM_TILES, TpuTiles, tpu_tiles_for
from pallas_kernels.grouped_matmul.tuning import candidates
from pallas_kernels.grouped_matmul.xla_tuning import xla_tiles_for


def problem_of(spec, dtype="bfloat16") -> Problem:
    return describe(
        jax.ShapeDtypeStruct((spec.rows, spec.depth), jnp.dtype(dtype)),
        jax.ShapeDtypeStruct((spec.num_groups, spec.depth, spec.columns), jnp.dtype(dtype)),
        jax.ShapeDtypeStruct((spec.num_groups,), jnp.int32),
        None,
        None,
    )


SPECS_OF_TPUS = [
    name for name, spec in OPERATION.every.items() if refuse_tpu(problem_of(spec)) is None
]


@pytest.mark.parametrize("name", SPECS_OF_TPUS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tpu_tiles_divide_every_spec_and_fit_into_vmem(dtype, name):
    problem = problem_of(OPERATION.every[name], dtype)
    every = candidates("tpu", problem)
    assert tpu_tiles_for(problem) == every[0]
    for tiles in every:
        assert problem.depth % tiles.depth == problem.columns % tiles.columns == 0
        assert tiles.vmem(problem) <= VMEM_TILES


@pytest.mark.parametrize("name", OPERATION.every)
def test_gpu_tiles_divide_every_spec_and_leave_room_for_three_steps(name):
    problem = problem_of(OPERATION.every[name])
    every = candidates("gpu", problem)
    assert gpu_tiles_for(problem) == every[0]
    for tiles in every:
        assert problem.columns % tiles.columns == 0
        stages = tiles.stages(problem)
        assert stages >= 3
        step = 64 * (tiles.rows + tiles.columns) * 2
        # With 3 KiB for barriers.
        assert stages * step + 3 * tiles.rows * 64 * 2 <= (227 - 3) * 1024


def test_gpu_tiles_that_leave_no_room_for_two_steps_are_no_candidates():
    problem = problem_of(OPERATION.every["64-experts"])
    wide = replace(problem, x_dtype=jnp.dtype("float32"), out_dtype=jnp.dtype("float32"))
    assert GpuTiles(rows=128, columns=256).most_stages(wide) < 2
    assert GpuTiles(rows=128, columns=256) in candidates("gpu", problem)
    assert GpuTiles(rows=128, columns=256) not in candidates("gpu", wide)
    # Barriers, chunks of the result, and two steps of 64 columns of rows and of weights.
    needed = 3 * 1024 + 3 * 128 * 64 * 4 + 2 * 64 * (128 + 256) * 4
    with pytest.raises(NoImplementation, match=f"takes {needed} bytes .* above {227 * 1024}"):
        GpuTiles(rows=128, columns=256).stages(wide)


@pytest.mark.parametrize("name", OPERATION.specs)
def test_xla_tiles_divide_every_spec(name):
    problem = problem_of(OPERATION.specs[name])
    tiles = xla_tiles_for(problem)
    assert problem.depth % tiles.depth == tiles.rows % 8 == 0


def test_tiles_on_trial_come_before_the_guess():
    problem = problem_of(OPERATION.every["64-experts"])
    with tile_table.trial("grouped_matmul", {}) as asked:
        guess = tpu_tiles_for(problem)
    (identity,) = asked
    tried = TpuTiles(rows=16, depth=128, columns=128)
    assert tried != guess
    with tile_table.trial("grouped_matmul", {identity: tried}):
        assert tpu_tiles_for(problem) == tried
