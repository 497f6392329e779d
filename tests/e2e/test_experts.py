"""A model with experts: the engine's tokens are the plain loop's, on one device and on two."""

from dataclasses import replace

import jax
import pytest

from jaxinfer.config import MlpSpec, MoeSpec, RouterSpec
from tests.e2e.test_engine_equals_generate import GREEDY, SEEDED, assert_equal_to_plain_loop
from tests.e2e.tiny import House, house_of, prompts, request, run, tiny_model

#: A dense layer, then one with all that a mixture can have.
MLPS = (
    MlpSpec(width=64),
    MoeSpec(
        router=RouterSpec(
            num_experts=8,
            top_k=3,
            scores="sigmoid",
            correction=True,
            scale=1.5,
            num_groups=4,
            top_groups=2,
            group_score="top2",
        ),
        expert=MlpSpec(width=16, bias=True),
        shared=MlpSpec(width=32),
        shared_gate=True,
    ),
)
WINDOWS = (None, None)


@pytest.fixture(scope="module")
def house() -> House:
    return house_of(WINDOWS, MLPS)


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_many_ragged_requests_equal_each_alone(house: House, params: dict) -> None:
    asked = [request(f"r{i}", p, **params) for i, p in enumerate(prompts(7, [1, 5, 17, 30]))]
    assert_equal_to_plain_loop(house, run(house.engine(), asked), asked)


def test_preemption_and_several_steps_a_call_change_no_token(house: House) -> None:
    engine = house.engine(num_pages=10, enable_prefix_caching=False, decode_steps=(1, 4))
    asked = [request(f"r{i}", p, **GREEDY) for i, p in enumerate(prompts(6, [14, 9, 20]))]
    assert_equal_to_plain_loop(house, run(engine, asked), asked)
    assert engine.stats.num_preemptions > 0
    assert engine.stats.num_micro_steps > engine.stats.num_steps


@pytest.mark.slow
def test_two_devices_give_the_tokens_of_one(house: House, four_devices: list[jax.Device]) -> None:
    split = replace(house, model=tiny_model(WINDOWS, devices=2, mlps=MLPS))
    engine = split.engine(num_pages=24)
    asked = [request(f"r{i}", p, **GREEDY) for i, p in enumerate(prompts(5, [3, 20, 31]))]
    assert_equal_to_plain_loop(house, run(engine, asked), asked)
    assert engine.runner.budget.weights < house.model.weight_bytes
