"""The kernels on small twins of the named shapes: groups, rows of a token, how they fall on groups,
and the dtype are real."""

import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.grouped_matmul.specs import ACCELERATOR_SPECS, SPECS
from tests.pallas_kernels.twins import names_by_twin, small_grouped

pytestmark = pytest.mark.interpreted

TWINS = names_by_twin(
    {name: small_grouped(spec) for name, spec in {**SPECS, **ACCELERATOR_SPECS}.items()}
)
GPU_IN_CI = {"64-experts-many-empty", "qwen3-30b-a3b-down", "deepseek-v3-device-up"}
"""Groups without rows, many groups, and padding."""


@pytest.fixture
def check(call_of, assert_equals_the_reference):
    def equals_the_reference(spec, implementation, **options):
        call = call_of(
            tuple(spec.group_sizes().tolist()),
            num_rows=spec.rows,
            depth=spec.depth,
            columns=spec.columns,
            dtype="bfloat16",
            w_dtype=spec.w_dtype,
        )
        assert_equals_the_reference(implementation, call, **options)

    return equals_the_reference


@pytest.mark.parametrize("spec", TWINS, ids=TWINS.values())
def test_tpu_equals_the_reference_on_a_twin_without_a_race(spec, check, has_raced):
    check(spec, "tpu", interpret=pltpu.InterpretParams(detect_races=True))
    assert not has_raced()


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(twin, id=name, marks=() if name in GPU_IN_CI else pytest.mark.slow)
        for twin, name in TWINS.items()
        if twin.w_dtype is None  # Scaled weights are refused.
    ],
)
def test_gpu_equals_the_reference_on_a_twin(spec, check):
    check(spec, "gpu")
