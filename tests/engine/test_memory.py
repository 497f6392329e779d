"""What may be used of a device, and what running out of it is called."""

import jax
import jax.numpy as jnp
import pytest

from jaxinfer.engine.limits import EngineLimits
from jaxinfer.engine.memory import (
    cache_groups,
    exhaustion_is_capacity_error,
    memory_limit,
    usable_memory,
    useful_pages,
)
from jaxinfer.errors import CapacityError, InvalidParameter
from sharding import make_mesh
from tests.e2e.tiny import tiny_config
from tests.engine.house import VOCAB, House


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


@pytest.mark.parametrize(
    ("windows", "pages"), [((12,), [37]), ((5, 12), [37, 29]), ((12, None), [1000, 37])]
)
def test_a_window_has_no_more_pages_than_its_slots_can_use(windows, pages):
    limits = EngineLimits(
        max_model_len=10**6,
        vocab_size=VOCAB,
        max_num_seqs=4,
        max_num_batched_tokens=32,
        page_size=8,
    )
    config = tiny_config(windows)
    assert [group.num_pages for group in cache_groups(config, limits, 1000)] == pages
    assert {group.num_pages for group in cache_groups(config, limits, 9)} == {9}


@pytest.mark.parametrize("lookahead", [True, False])
@pytest.mark.parametrize("windows", [(6,), (11, 3)])
def test_a_model_of_windows_alone_needs_no_more_pages_than_that(windows, lookahead):
    """No sequence is preempted however long it is, and what others had computed is found again."""
    sizes = {"max_num_seqs": 3, "max_num_batched_tokens": 8, "page_size": 4, "max_model_len": 200}
    limits = EngineLimits(vocab_size=VOCAB, **sizes)
    groups = cache_groups(tiny_config(windows), limits, useful_pages(limits))
    assert groups[0].num_pages < useful_pages(limits) // 4
    house = House(groups, lookahead=lookahead, **sizes)
    stem = [1 + i % 7 for i in range(22)]
    for i in range(3):
        house.submit(f"r{i}", [*stem, 1 + i], max_tokens=120 + i, ignore_eos=True)
    house.run()
    house.submit("again", [*stem, 9], max_tokens=5)
    assert house.stats.num_preemptions == 0
    house.run()
    for name in house.requests:
        house.assert_as_expected(name)
    house.assert_idle()


def test_windows_alone_in_too_few_pages_are_preempted_and_come_out_right():
    groups = cache_groups(tiny_config((6,)), EngineLimits(max_model_len=64, vocab_size=VOCAB), 7)
    house = House(groups, max_num_seqs=4)
    for i in range(4):
        house.submit(f"r{i}", [1, 2, 3, 4, 5, 6, 7, 8, 1 + i], max_tokens=20, ignore_eos=True)
    house.run()
    assert house.stats.num_preemptions > 0
    for name in house.requests:
        house.assert_as_expected(name)
    house.assert_idle()
