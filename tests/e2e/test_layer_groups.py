"""Full and window layers side by side, as gpt-oss has them.

Each group has pages and a prefix cache of its own. Alone, batched, in chunks, preempted or behind a
prefix hit, the tokens are the same.
"""

from dataclasses import replace

import jax
import pytest

from jaxinfer.config import MlpSpec, MoeSpec, RouterSpec
from tests.e2e.test_engine_equals_generate import GREEDY, assert_equal_to_plain_loop
from tests.e2e.tiny import House, house_of, prompts, request, run, tiny_model

WINDOWS = (12, None)
MIXER = {"sinks": True, "qkv_bias": True, "out_bias": True}
MLPS = (
    MoeSpec(
        router=RouterSpec(num_experts=6, top_k=2, bias=True),
        expert=MlpSpec(width=16, bias=True, limit=0.5, swish_beta=1.702, up_offset=1.0),
    ),
) * len(WINDOWS)


@pytest.fixture(scope="module")
def house() -> House:
    return house_of(WINDOWS, MLPS, **MIXER)


def test_batched_in_chunks_and_preempted_the_tokens_are_those_of_each_alone(house: House) -> None:
    engine = house.engine(num_pages=10, enable_prefix_caching=False)
    asked = [request(f"r{i}", p, **GREEDY) for i, p in enumerate(prompts(6, [1, 14, 9, 40, 20]))]
    assert_equal_to_plain_loop(house, run(engine, asked), asked)
    assert engine.stats.num_preemptions > 0


def test_a_hit_needs_the_whole_prefix_of_one_group_and_the_window_of_the_other(
    house: House,
) -> None:
    engine = house.engine(max_num_seqs=1)
    [shared], tails = prompts(1, [40]), prompts(3, [4], seed=1)

    def hit_tokens(prompt: list[int]) -> int:
        before = engine.stats.prefix_hit_tokens
        asked = [request("r", prompt, **(GREEDY | {"max_tokens": 8}))]
        assert_equal_to_plain_loop(house, run(engine, asked), asked)
        return engine.stats.prefix_hit_tokens - before

    assert hit_tokens([*shared, *tails[0]]) == 0
    assert hit_tokens([*shared, *tails[1]]) == 40
    # Others take the few pages of the window group; the full one still has all that it had.
    for other in prompts(2, [48], seed=2):
        assert hit_tokens(other) == 0
    assert hit_tokens([*shared, *tails[2]]) == 0
    assert hit_tokens([*shared, *tails[2]]) == 40


@pytest.mark.slow
def test_a_model_of_windows_alone_holds_no_more_than_they_see() -> None:
    """Prefix hits and preemption in the few pages that its slots can use."""
    house = house_of((12,))
    engine = house.engine(num_pages=1000)
    # For four slots, two windows of four pages each; two pages for a step; one that is never used.
    [group] = engine.runner.groups
    assert group.num_pages == 1 + 4 * 2 * 4 + 2
    [stem] = prompts(1, [40])
    asked = [request(f"r{i}", [*stem, *tail], **GREEDY) for i, tail in enumerate(prompts(5, [4]))]
    assert_equal_to_plain_loop(house, run(engine, asked[:1]), asked[:1])
    assert_equal_to_plain_loop(house, run(engine, asked[1:]), asked[1:])
    assert engine.stats.num_preemptions == 0
    assert engine.stats.prefix_hit_tokens >= 40 - 12
    engine = house.engine(num_pages=8, enable_prefix_caching=False)
    assert_equal_to_plain_loop(house, run(engine, asked), asked)
    assert engine.stats.num_preemptions > 0


@pytest.mark.slow
def test_two_devices_give_the_tokens_of_one(house: House, four_devices: list[jax.Device]) -> None:
    split = replace(house, model=tiny_model(WINDOWS, devices=2, mlps=MLPS, **MIXER))
    asked = [request(f"r{i}", p, **GREEDY) for i, p in enumerate(prompts(4, [3, 20, 31]))]
    assert_equal_to_plain_loop(house, run(split.engine(num_pages=24), asked), asked)
