"""The tables of tile sizes that are committed."""

from dataclasses import fields

import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from pallas_kernels import chips, tile_table
from pallas_kernels.grouped_matmul import tuning as grouped
from pallas_kernels.grouped_matmul.problem import Problem as GroupedProblem
from pallas_kernels.latent_attention import gpu_tuning as latent_gpu
from pallas_kernels.latent_attention import tpu_tuning as latent_tpu
from pallas_kernels.latent_attention import tuning as latent
from pallas_kernels.ragged_paged_attention import tuning as ragged
from pallas_kernels.ragged_paged_attention.gpu_tiles import GpuProblem
from pallas_kernels.ragged_paged_attention.tpu_tiles import TpuCall
from pallas_kernels.tpu_chips import TPU_CHIPS

OPERATIONS = {
    "ragged_paged_attention": (ragged, {"tpu": TpuCall, "gpu": GpuProblem}),
    "latent_attention": (latent, {"tpu": latent_tpu.Problem, "gpu": latent_gpu.Problem}),
    "grouped_matmul": (grouped, {"tpu": GroupedProblem, "gpu": GroupedProblem}),
}
GPUS = {kind for kind, *_ in chips.GPUS.values()}
ENTRIES = [
    pytest.param(operation, entry, id=f"{operation}-{entry.chip}-{number}")
    for operation in OPERATIONS
    for number, entry in enumerate(tile_table.read(operation))
]


def problem_of(operation, entry):
    """The problem that an entry stands for."""
    kind = OPERATIONS[operation][1][entry.implementation]
    dtypes = {field.name for field in fields(kind) if field.type is np.dtype}
    return kind(**{name: jnp.dtype(x) if name in dtypes else x for name, x in entry.key.items()})


def candidates_of(operation, entry):
    device = AbstractDevice(
        device_kind=entry.chip, num_cores=1, platform="gpu" if entry.chip in GPUS else "tpu"
    )
    with use_abstract_mesh(AbstractMesh((1,), ("chip",), abstract_device=device)):
        candidates = OPERATIONS[operation][0].candidates
        return list(candidates(entry.implementation, problem_of(operation, entry)))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_chip_that_there_is_a_compiler_for_is_in_the_table(operation):
    entries = tile_table.read(operation)
    assert {entry.chip for entry in entries if entry.implementation == "tpu"} == set(TPU_CHIPS)
    assert {entry.chip for entry in entries if entry.implementation == "gpu"} == GPUS


@pytest.mark.parametrize(("operation", "entry"), ENTRIES)
def test_an_entry_is_what_its_kernel_would_ask_for(operation, entry):
    """Or it would be read by nobody, once what a choice depends on is described anew."""
    assert tile_table.key_of(problem_of(operation, entry)) == entry.key
    assert entry.command.startswith(f"python -m pallas_kernels.tune {operation}")


@pytest.mark.parametrize(("operation", "entry"), ENTRIES)
def test_the_heuristic_is_within_a_tenth_of_the_table(operation, entry):
    """By time where an entry was measured. Where nothing was, the entry is the first candidate that
    compiles for its chip; all chips take the heuristic's own, so it must be that."""
    if entry.microseconds is not None:
        assert entry.heuristic_microseconds is not None, "measure it again"
        assert entry.heuristic_microseconds <= 1.1 * entry.microseconds
        return
    assert entry.heuristic_microseconds is None
    heuristic, *others = candidates_of(operation, entry)
    tiles = tile_table.tiles_of(entry, type(heuristic))
    assert tiles in [heuristic, *others]
    assert tiles == heuristic
