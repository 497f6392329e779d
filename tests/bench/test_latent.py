"""What is timed against each other gives the same numbers."""

import pytest

from jaxinfer.bench.latent import measure_latent


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_forms_of_a_step_are_timed_and_agree(dtype):
    report = measure_latent(num_heads=2, context=70, num_rows=2, dtype=dtype, repeats=1)
    assert report["largest_difference"] < {"float32": 1e-6, "bfloat16": 2**-8}[dtype]
    assert report["speedup"] == pytest.approx(report["expanded_ms"] / report["absorbed_ms"])
    assert report["absorbed_ms"] > 0
