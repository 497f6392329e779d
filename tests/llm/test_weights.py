"""Other weights, and none for a while: what requests get, and what is left as it was."""

import weakref
from collections.abc import Iterator

import jax
import pytest

from jaxinfer import LLM, SamplingParams
from jaxinfer.checkpoint.directory import read_config
from jaxinfer.errors import Asleep, CapacityError, InvalidParameter, ModelNotFound, Unsupported
from jaxinfer.models.loading import dummy_model, save_model
from jaxinfer.models.registry import model_config
from sharding import make_mesh
from tests.llm.tiny_model import MAX_LEN, SETTINGS, write_tiny_model

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
LONG = SamplingParams(temperature=0, max_tokens=MAX_LEN - 8, ignore_eos=True)
STORED = {**SETTINGS, "load_format": "auto"}


def write_checkpoint(directory, seed: int, **changes):
    config = read_config(write_tiny_model(directory.with_suffix(".config"), **changes))
    model = dummy_model(model_config(config), mesh=make_mesh(), seed=seed)
    save_model(model, directory, config)
    return write_tiny_model(directory, **changes)  # its tokenizer, and the same config


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    room = tmp_path_factory.mktemp("weights")
    return [write_checkpoint(room / f"seed{seed}", seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def expected(checkpoints):
    """The tokens of each of the two."""
    found = []
    for directory in checkpoints:
        with LLM(directory, **STORED) as llm:
            found.append(tokens(llm))
    assert found[0] != found[1]
    return found


@pytest.fixture(scope="module")
def shared(checkpoints) -> Iterator[LLM]:
    with LLM(checkpoints[0], **STORED) as llm:
        yield llm


@pytest.fixture
def llm(shared, checkpoints) -> Iterator[LLM]:
    """With the first one's weights."""
    yield shared
    shared.update_weights(checkpoints[0])


def tokens(llm: LLM, params: SamplingParams = GREEDY) -> tuple[int, ...]:
    [output] = llm.generate("hello, you", params, use_tqdm=False)
    return output.outputs[0].token_ids


def test_other_weights_serve_who_begins_afterwards_and_nothing_is_compiled(
    llm, checkpoints, expected
):
    assert tokens(llm) == tokens(llm) == expected[0]  # the second one from the prefix cache
    before = llm.num_compiles
    llm.update_weights(checkpoints[1])
    assert tokens(llm) == expected[1]
    llm.update_weights(checkpoints[0])
    assert tokens(llm) == expected[0]
    assert llm.num_compiles == before
    [output] = llm.generate("hello, you", GREEDY, use_tqdm=False)
    assert output.num_cached_tokens > 0


def test_who_was_begun_ends_with_the_old_weights_and_who_waits_has_the_new_ones(
    llm, checkpoints, expected
):
    alone = tokens(llm, LONG)
    with llm.stream("hello, you", LONG) as stream:
        events = iter(stream)
        first = next(events)
        llm.update_weights(checkpoints[1])
        rest = [token for event in events for token in event.token_ids]
    assert (*first.token_ids, *rest) == alone
    assert tokens(llm) == expected[1]


def test_weights_that_do_not_fit_change_nothing(llm, checkpoints, tmp_path, expected, monkeypatch):
    wider = write_checkpoint(tmp_path / "wider", 1, hidden_size=32)
    with pytest.raises(InvalidParameter, match="another architecture: width"):
        llm.update_weights(wider)
    with pytest.raises(ModelNotFound):
        llm.update_weights(tmp_path / "absent")
    monkeypatch.setattr("jaxinfer.llm.weights.usable_memory", lambda *_: llm.budget.total + 5)
    with pytest.raises(CapacityError, match="and 5 are free"):
        llm.update_weights(checkpoints[1])
    assert tokens(llm) == expected[0]


def test_requests_that_do_not_end_in_time_leave_the_old_weights(llm, checkpoints, expected):
    with llm.stream("hello, you", LONG) as stream:
        next(iter(stream))
        with pytest.raises(TimeoutError):
            llm.update_weights(checkpoints[1], timeout=0.0)
    assert tokens(llm) == expected[0]


@pytest.mark.parametrize("level", [1, 2])
def test_it_sleeps_without_memory_on_the_device_and_wakes_as_it_was(
    llm, checkpoints, expected, level
):
    llm.update_weights(checkpoints[1])
    assert tokens(llm) == expected[1]
    before = llm.num_compiles
    used = [weakref.ref(leaf) for leaf in jax.tree.leaves(llm.engine.runner.model.params)]
    llm.sleep(level)
    assert not any(leaf() for leaf in used)
    assert llm.is_asleep
    assert jax.tree.leaves(llm.engine.runner._cache) == []
    held = jax.tree.leaves(llm.engine.runner.model.params)
    assert {type(leaf) for leaf in held} == {jax.ShapeDtypeStruct}
    for call in (lambda: tokens(llm), llm.sleep, lambda: llm.update_weights(checkpoints[0])):
        with pytest.raises(Asleep):
            call()
    llm.wake_up()
    llm.wake_up()
    assert tokens(llm) == tokens(llm) == expected[1]
    assert llm.num_compiles == before


def test_who_is_served_delays_the_sleep_and_may_prevent_it(llm, expected):
    with llm.stream("hello, you", LONG) as stream:
        next(iter(stream))
        with pytest.raises(TimeoutError):
            llm.sleep(timeout=0.0)
        assert not llm.is_asleep
        llm.sleep()
        assert list(stream)[-1].finish_reason == "length"
    llm.wake_up()
    assert tokens(llm) == expected[0]


@pytest.mark.parametrize("change", ["sleep", "update"])
def test_who_is_interrupted_while_he_waits_has_changed_nothing(
    llm, checkpoints, expected, monkeypatch, change
):
    calls = {"sleep": llm.sleep, "update": lambda: llm.update_weights(checkpoints[1])}
    step = llm.engine.step

    def interrupted() -> bool:
        step()
        raise KeyboardInterrupt

    with llm.stream("hello, you", LONG) as stream:
        next(iter(stream))
        monkeypatch.setattr(llm.engine, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            calls[change]()
        monkeypatch.undo()
        assert list(stream)[-1].finish_reason == "length"
    assert tokens(llm) == expected[0]


def test_who_is_interrupted_when_it_sleeps_finds_it_asleep(llm, expected, monkeypatch):
    step = llm.engine.step

    def interrupted() -> bool:
        step()
        raise KeyboardInterrupt

    monkeypatch.setattr(llm.engine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.sleep()
    monkeypatch.undo()
    assert llm.is_asleep
    llm.wake_up()
    assert tokens(llm) == expected[0]


@pytest.mark.parametrize("level", [0, 3, "1"])
def test_another_level_is_refused(llm, level):
    with pytest.raises(InvalidParameter, match="must be 1 or 2"):
        llm.sleep(level)


def test_one_profile_at_a_time_is_written_where_it_was_asked_for(llm, tmp_path):
    with pytest.raises(Unsupported, match="no profile"):
        llm.stop_profile()
    with pytest.raises(InvalidParameter, match="directory = "):
        llm.start_profile(tmp_path / ("x" * 300))
    llm.start_profile(tmp_path / "here")
    with pytest.raises(Unsupported, match="is being taken"):
        llm.start_profile(tmp_path)
    tokens(llm)
    assert llm.stop_profile() == tmp_path / "here"
    assert any(path.is_file() for path in (tmp_path / "here").rglob("*"))
