"""The Hopper kernel through the real compilers, for a chip that is not here (sm_90a): what no spec
has. The specs are compiled in ``test_compile_specs.py``."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pallas_kernels import grouped_matmul
from pallas_kernels.grouped_matmul.bench import OPERATION
from pallas_kernels.grouped_matmul.specs import Spec
from tests.chips import REPORT

SPECS = OPERATION.every


def compile_spec(mesh, spec, implementation="gpu", **options):
    here = NamedSharding(mesh, PartitionSpec())

    def array(shape, dtype):
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=here)

    arguments = (
        array((spec.rows, spec.depth), "bfloat16"),
        array((spec.num_groups, spec.depth, spec.columns), "bfloat16"),
        array((spec.num_groups,), "int32"),
    )

    def call(*arrays):
        return grouped_matmul(*arrays, implementation=implementation, **options)

    with jax.set_mesh(mesh):
        return jax.jit(call, out_shardings=here).lower(*arguments).compile()


def test_a_result_of_float32_keeps_its_numbers_in_registers(hopper_mesh, monkeypatch, capfd):
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTXAS", "1")
    compiled = compile_spec(hopper_mesh, SPECS["64-experts"], preferred_element_type="float32")
    said = "".join(capfd.readouterr())
    reports = [tuple(map(int, found)) for found in REPORT.findall(said)]
    assert len(reports) == 1, said
    assert "C7510" not in said, "products wait for each other"
    assert reports[0][:2] == (0, 0), f"spill stores, spill loads, registers: {reports[0]}"
    assert compiled.memory_analysis().temp_size_in_bytes < 2**20


@pytest.mark.parametrize("num_tokens", [1, 1_001])
def test_any_number_of_rows(num_tokens, hopper_mesh):
    spec = Spec(num_groups=4, num_tokens=num_tokens, top_k=1, depth=256, columns=384)
    compiled = compile_spec(hopper_mesh, spec)
    # x is copied, with rows that make it a multiple of 8, and one tile at least.
    bound = (num_tokens + 64) * 256 * 2 + 2**16
    assert compiled.memory_analysis().temp_size_in_bytes < bound


def test_plain_xla_expands_nothing_either(hopper_mesh):
    spec = SPECS["64-experts"]
    compiled = compile_spec(hopper_mesh, spec, implementation="xla")
    # Sums in float32, and a few matrices on their way; all matrices are 268 MB.
    bound = spec.rows * spec.columns * 4 + 4 * spec.depth * spec.columns * 2
    assert compiled.memory_analysis().temp_size_in_bytes < bound
