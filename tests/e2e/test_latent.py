"""Latent attention beside full attention and windows: the engine's tokens are the plain loop's."""

from collections.abc import Iterator
from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxinfer.cache import init_cache, layer_groups, page_bytes
from jaxinfer.config import LatentSpec, ModelConfig, NormSpec, RopeSpec
from jaxinfer.ops import latent
from tests.e2e.test_engine_equals_generate import GREEDY, SEEDED, assert_equal_to_plain_loop
from tests.e2e.tiny import (
    House,
    house_of_model,
    model_of,
    prompts,
    request,
    run,
    tiny_config,
)

#: Beside a layer with latents: every kind of group is there.
WINDOWS = (12, None)


def latent_config() -> ModelConfig:
    config = tiny_config(WINDOWS)
    mixer = LatentSpec(
        num_heads=4,
        q_rank=24,
        query_norm=NormSpec(),
        kv_rank=16,
        latent_norm=NormSpec(),
        nope_dim=12,
        rope_dim=8,
        value_dim=10,
        rope=RopeSpec(theta=1e4, rotary_dim=8, interleaved=True),
    )
    latents = replace(config.layers[0], mixer=mixer)
    return replace(config, layers=(latents, *config.layers))


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    """All prefills are long ones, so that both forms of latent attention take part; rows of eight
    new tokens behind a past are enough for the one that makes keys and values."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latent, "EXPANDED_FROM", 8)
        patch.setattr(latent, "expansion_pays_from", lambda heads: 8)
        yield house_of_model(model_of(latent_config()))


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_many_ragged_requests_equal_each_alone(house: House, params: dict) -> None:
    """Prompts of up to 30 tokens, in chunks of at most 16; all unused pages hold NaN."""
    asked = [request(f"r{i}", p, **params) for i, p in enumerate(prompts(7, [1, 5, 17, 30]))]
    assert_equal_to_plain_loop(house, run(house.engine(), asked), asked)


def test_preemption_and_several_steps_a_call_change_no_token(house: House) -> None:
    engine = house.engine(num_pages=10, enable_prefix_caching=False, decode_steps=(1, 4))
    asked = [request(f"r{i}", p, **GREEDY) for i, p in enumerate(prompts(6, [14, 9, 20]))]
    assert_equal_to_plain_loop(house, run(engine, asked), asked)
    assert engine.stats.num_preemptions > 0
    assert engine.stats.num_micro_steps > engine.stats.num_steps


def test_prefix_hits_and_copied_pages_change_no_token(house: House) -> None:
    engine = house.engine()
    shared = prompts(1, [26])[0]
    asked = [request(f"r{i}", [*shared, *tail], **GREEDY) for i, tail in enumerate(prompts(2, [4]))]
    for one in asked:
        assert_equal_to_plain_loop(house, run(engine, [one]), [one])
    assert engine.stats.prefix_hit_tokens > 0
    samples = [request("a", prompts(1, [13])[0], **(SEEDED | {"n": 3}))]
    assert_equal_to_plain_loop(house, run(engine, samples), samples)
    assert engine.stats.num_copied_pages > 0


@pytest.mark.slow
def test_two_devices_give_the_tokens_of_one(house: House, four_devices: list[jax.Device]) -> None:
    engine = replace(house, model=model_of(latent_config(), devices=2)).engine(num_pages=24)
    asked = [request(f"r{i}", p, **GREEDY) for i, p in enumerate(prompts(5, [3, 20, 31]))]
    assert_equal_to_plain_loop(house, run(engine, asked), asked)
    assert engine.runner.budget.weights < house.model.weight_bytes
    # Latents are whole on both devices, keys and values are halved.
    full, latents, window = page_bytes(house.model.config, 8, "float32")
    groups = [group.num_pages for group in engine.runner.groups]
    wanted = np.dot(groups, [full // 2, latents, window // 2])
    assert engine.runner.budget.pages == wanted


def test_a_token_costs_its_latent_and_not_its_heads() -> None:
    config = latent_config()
    kinds = [(group.kind, group.layers) for group in layer_groups(config)]
    assert kinds == [("full", (2,)), ("latent", (0,)), ("window", (1,))]
    of_heads, of_latents = 2 * 2 * 16 * 4, (16 + 8) * 4
    assert page_bytes(config, 8, "float32") == (8 * of_heads, 8 * of_latents, 8 * of_heads)
    cache = init_cache(config, (5, 6, 7), 8, "float32")
    allocated = [sum(leaf.nbytes for leaf in jax.tree.leaves(pages)) for pages in cache]
    assert allocated == [6 * 8 * of_latents, 7 * 8 * of_heads, 5 * 8 * of_heads]
