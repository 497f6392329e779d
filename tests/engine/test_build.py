"""Building an engine: the budget is what devices hold, and what cannot be built says why."""

import jax
import pytest

from jaxinfer.engine.build import build_engine
from jaxinfer.engine.engine import Engine
from jaxinfer.engine.runner import DeviceRunner
from jaxinfer.errors import CapacityError, InvalidParameter
from jaxinfer.models.loading import dummy_model
from jaxinfer.shapes import Tree
from pallas_kernels import NoImplementation, init_kv_pages
from sharding import make_mesh
from tests.e2e.tiny import PAGE, tiny_config


def build(
    sizes: dict[str, int] | None = None, windows: tuple = (None,), **options: object
) -> Engine:
    model = dummy_model(tiny_config(windows), mesh=make_mesh(sizes))
    settings: dict = {
        "max_num_seqs": 2,
        "max_num_batched_tokens": 16,
        "prefill_tokens": (16,),
        "page_size": PAGE,
        "num_pages": 20,
        "prompt_logprobs": False,
    }
    return build_engine(model, None, **settings | options)


def held_by(device: jax.Device, arrays: Tree) -> int:
    shards = [s for leaf in jax.tree.leaves(arrays) for s in leaf.addressable_shards]
    return sum(shard.data.nbytes for shard in shards if shard.device == device)


@pytest.mark.parametrize("sizes", [{"data": 2}, {"model": 2}, {"data": 2, "model": 2}])
def test_the_budget_is_what_each_device_holds(
    four_devices: list[jax.Device], sizes: dict[str, int]
) -> None:
    runner = build(sizes, windows=(12, None)).runner
    for device in runner._programs.model.mesh.devices.flat:
        assert runner.budget.weights == held_by(device, runner._params)
        assert runner.budget.pages == held_by(device, runner._cache)
        assert runner.budget.slots == held_by(device, runner._slots)


@pytest.mark.slow
def test_a_data_axis_makes_no_room_for_more_pages(
    four_devices: list[jax.Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every device along it holds all weights and all pages."""
    settings = {"windows": (None, None), "max_num_seqs": 16, "num_pages": None}
    most = build(**settings).runner.budget
    monkeypatch.setattr("jaxinfer.engine.build.usable_memory", lambda mesh, share: most.total)
    one = build(**settings).runner.budget
    assert one.num_pages < most.num_pages
    assert build({"data": 4}, **settings).runner.budget.num_pages == one.num_pages


def test_pages_that_fill_a_device_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxinfer.engine.build.usable_memory", lambda mesh, share: 1000)
    # Keys and values of 2 heads of 16 float32 numbers, 8 positions a page.
    pages = 20 * 8 * 2 * 2 * 16 * 4
    with pytest.raises(CapacityError, match=f"20 takes {pages:,} bytes, and 1,000 may be used"):
        build()


def runs_fast(page_size: int) -> bool:
    try:
        init_kv_pages(2, page_size, 1, 4, "float32", implementation="xla")
    except NoImplementation:
        return False
    return True


@pytest.mark.parametrize("page_size", [1, 4, 7, 8, 9, 24, 64, 100, 256, 512])
def test_a_page_size_that_no_fast_kernel_takes_is_refused(page_size: int) -> None:
    message = f"page_size = {page_size} is not allowed.*8, 16, 32, 64, 128, 256.*leave it out"
    with pytest.raises(InvalidParameter) as refused:
        build(page_size=page_size, num_pages=1)  # refused, too, but after the page size
    assert refused.match("num_pages = 1" if runs_fast(page_size) else message)


def test_a_device_that_is_full_at_the_warm_up_is_a_capacity_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exhausted = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes")
    failed = jax.errors.JaxRuntimeError("INTERNAL: something else")
    for error, wanted in ((exhausted, CapacityError), (failed, jax.errors.JaxRuntimeError)):

        def fail(runner: DeviceRunner, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(DeviceRunner, "warm_up", fail)
        with pytest.raises(wanted, match=str(error)) as raised:
            build()
        assert error in (raised.value, raised.value.__cause__)


def test_pages_are_counted_again_where_the_first_guess_left_no_room_for_temporaries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    least = build(num_pages=3).runner.budget
    room = least.total + least.pages
    monkeypatch.setattr("jaxinfer.engine.build.usable_memory", lambda mesh, share: room)
    budget = build(num_pages=None).runner.budget
    assert budget.total <= room
    assert budget.num_pages[0] >= 3
