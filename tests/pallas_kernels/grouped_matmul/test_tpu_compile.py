"""The TPU kernel compiled by the real compiler, for chips that are not here: what no spec has. The
specs are compiled in ``test_compile_specs.py``."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pallas_kernels import grouped_matmul
from pallas_kernels.grouped_matmul.bench import OPERATION
from pallas_kernels.grouped_matmul.specs import Spec

SPECS = OPERATION.every


def compile_spec(mesh, spec, dtype="bfloat16", w_dtype=None, implementation="tpu", **options):
    here = NamedSharding(mesh, PartitionSpec())
    w_dtype = w_dtype or spec.w_dtype

    def array(shape, dtype):
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=here)

    arguments = [
        array((spec.rows, spec.depth), dtype),
        array((spec.num_groups, spec.depth, spec.columns), w_dtype or dtype),
        array((spec.num_groups,), "int32"),
    ]
    if w_dtype:
        arguments.append(array((spec.num_groups, spec.columns), "float32"))

    def call(x_TD, w_EDF, sizes_E, scale_EF=None):
        return grouped_matmul(
            x_TD, w_EDF, sizes_E, w_scale_EF=scale_EF, implementation=implementation, **options
        )

    with jax.set_mesh(mesh):
        return jax.jit(call).lower(*arguments).compile()


def assert_is_lean(compiled, spec):
    """Nothing is expanded: temporaries are lists of visits, and the work is told."""
    assert compiled.memory_analysis().temp_size_in_bytes < 2**20
    costs = compiled.cost_analysis()
    assert 0 < costs["flops"] < 1.01 * 2 * spec.rows * spec.depth * spec.columns
    # Where nothing is known of a part, the sum is negative.
    assert costs["optimal_seconds"] > 0


KINDS = {
    "float32": {"dtype": "float32"},
    "float32 to bfloat16": {"dtype": "float32", "preferred_element_type": "bfloat16"},
    "bfloat16 to float32": {"preferred_element_type": "float32"},
    "int8": {"w_dtype": "int8"},
    "int8 and float32": {"dtype": "float32", "w_dtype": "int8"},
    "e4m3": {"w_dtype": "float8_e4m3fn"},
    "e5m2": {"w_dtype": "float8_e5m2"},
}


SMALL = Spec(num_groups=4, num_tokens=256, top_k=1, depth=256, columns=384)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("chip", ["v5e", "tpu7x"])
def test_every_dtype(chip, kind, tpu_mesh):
    assert_is_lean(compile_spec(tpu_mesh(chip), SMALL, **kind), SMALL)


@pytest.mark.parametrize("num_tokens", [1, 17, 1_001])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_any_number_of_rows(num_tokens, dtype, tpu_mesh):
    spec = Spec(num_groups=4, num_tokens=num_tokens, top_k=1, depth=256, columns=384)
    assert_is_lean(compile_spec(tpu_mesh("v6e"), spec, dtype=dtype), spec)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_plain_xla_expands_nothing_either(dtype, tpu_mesh):
    spec = Spec(num_groups=64, num_tokens=1_000, top_k=1, depth=200, columns=300)
    compiled = compile_spec(tpu_mesh("v6e"), spec, dtype=dtype, implementation="xla")
    # Sums in float32, and x with its rows filled up to whole registers.
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * 2**20


def test_plain_xla_cuts_scaled_weights_where_they_are(tpu_mesh):
    spec = SPECS["64-experts"]
    compiled = compile_spec(tpu_mesh("v6e"), spec, w_dtype="int8", implementation="xla")
    # Sums in float32, and one matrix of 64 or two on their way.
    bound = spec.rows * spec.columns * 4 + 4 * spec.depth * spec.columns
    assert compiled.memory_analysis().temp_size_in_bytes < bound
