"""Layers that share keys and values, in several streams: the tokens are the plain loop's."""

from dataclasses import replace

import jax
import pytest

from tests.e2e.test_engine_equals_generate import GREEDY, SEEDED, assert_equal_to_plain_loop
from tests.e2e.tiny import House, house_of, prompts, request, run, tiny_model

#: A layer with a window, one without, and one that reads the keys and values of the first.
WINDOWS = (12, None, 12)
OWNERS = (None, None, 0)


@pytest.fixture(scope="module")
def house() -> House:
    return house_of(WINDOWS, owners=OWNERS)


def test_preemption_changes_no_token(house: House) -> None:
    engine = house.engine(num_pages=10, enable_prefix_caching=False)
    asked = [request(f"r{i}", p, **GREEDY) for i, p in enumerate(prompts(6, [14, 1, 30]))]
    assert_equal_to_plain_loop(house, run(engine, asked), asked)
    assert engine.stats.num_preemptions > 0


def test_samples_share_the_pages_of_their_prompt_and_of_an_earlier_one(house: House) -> None:
    engine = house.engine()
    [prompt] = prompts(1, [26])
    for name, tail in (("a", [9]), ("b", [8, 9])):
        asked = [request(name, [*prompt, *tail], **(SEEDED | {"n": 3}))]
        assert_equal_to_plain_loop(house, run(engine, asked), asked)
    assert engine.stats.num_copied_pages > 0
    assert engine.stats.prefix_hit_tokens > 0


@pytest.mark.slow
def test_two_devices_give_the_tokens_of_one(house: House, four_devices: list[jax.Device]) -> None:
    split = replace(house, model=tiny_model(WINDOWS, devices=2, owners=OWNERS))
    engine = split.engine(num_pages=24)
    asked = [request(f"r{i}", p, **GREEDY) for i, p in enumerate(prompts(5, [3, 20, 31]))]
    assert_equal_to_plain_loop(house, run(engine, asked), asked)
    assert engine.runner.budget.weights < house.model.weight_bytes
