"""What may be used of a device, and what running out of it is called."""

import jax
import jax.numpy as jnp
import pytest

from jaxinfer.engine.memory import exhaustion_is_capacity_error, memory_limit, usable_memory
from jaxinfer.errors import CapacityError, InvalidParameter
from sharding import make_mesh


def test_devices_of_one_host_share_its_memory(four_devices, monkeypatch):
    monkeypatch.setattr("jaxinfer.engine.memory.memory_limit", lambda device: 1000)
    shares = 4 if four_devices[0].platform == "cpu" else 1
    assert usable_memory(make_mesh(), 0.5) == 500
    assert usable_memory(make_mesh({"data": 2, "model": 2}), 0.5) == 500 // shares


def test_the_container_bounds_the_memory_of_a_cpu(monkeypatch):
    [device] = jax.devices("cpu")[:1]
    monkeypatch.setattr("jaxinfer.engine.memory.cgroup_memory_limit", lambda: None)
    physical = memory_limit(device)
    for container, limit in ((4096, 4096), (physical + 1, physical)):
        monkeypatch.setattr("jaxinfer.engine.memory.cgroup_memory_limit", lambda c=container: c)
        assert memory_limit(device) == limit


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan"), float("inf")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(InvalidParameter, match=f"memory_utilization = {share}"):
        usable_memory(make_mesh(), share)


def test_an_allocation_beyond_all_memory_is_a_capacity_error():
    too_much = jax.jit(lambda: jnp.zeros((2**20, 2**30), jnp.float32)).lower().compile()
    with (
        pytest.raises(CapacityError, match=r"ran out of memory.* lower memory_utiliz") as refused,
        exhaustion_is_capacity_error(),
    ):
        too_much()
    assert isinstance(refused.value.__cause__, jax.errors.JaxRuntimeError)


@pytest.mark.parametrize(
    "error", [jax.errors.JaxRuntimeError("INTERNAL: a bug"), RuntimeError("RESOURCE_EXHAUSTED")]
)
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(RuntimeError) as raised, exhaustion_is_capacity_error():
        raise error
    assert raised.value is error
