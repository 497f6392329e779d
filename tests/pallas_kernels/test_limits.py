"""Times and limits of the chip that is here."""

import jax.numpy as jnp
import pytest

from pallas_kernels import limits
from pallas_kernels.limits import Limits, seconds_of


def test_nothing_is_faster_than_its_larger_part():
    known = Limits(bytes_per_second=100.0, flops_per_second=1000.0, dtype="bfloat16")
    assert known.least_seconds(200, 500) == 2.0
    assert known.least_seconds(200, 5000) == 5.0


@pytest.mark.parametrize("is_accelerator", [False, True])
def test_every_sample_is_a_call_and_the_first_call_is_not_counted(is_accelerator, monkeypatch):
    calls = 0

    def step():
        nonlocal calls
        calls += 1
        return jnp.zeros(1)

    monkeypatch.setattr(limits, "is_accelerator", lambda: is_accelerator)
    monkeypatch.setattr(limits, "SAMPLE_SECONDS", 1e-3)
    times = seconds_of(step, 4)
    assert len(times) == 4
    assert all(seconds > 0 for seconds in times)
    assert calls >= 1 + 3 + 4 if is_accelerator else calls == 1 + 4


def test_limits_are_of_the_dtype_that_was_asked_for(monkeypatch):
    samples = iter(([2.0, 1.0], [4.0, 0.5]))
    steps = []

    def seconds(step, repeats):
        steps.append(step())
        return next(samples)

    monkeypatch.setattr(limits, "seconds_of", seconds)
    measured = limits.measure_limits("bfloat16")
    assert measured == Limits(
        bytes_per_second=2 * 4 * 2**26, flops_per_second=2 * 2048**3 / 0.5, dtype="bfloat16"
    )
    assert jnp.isfinite(steps[1]).all()
