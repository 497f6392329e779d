"""Two devices give the tokens of one: weights, heads and pages are split, results are not."""

from dataclasses import replace

import jax
import pytest

from tests.e2e.tiny import House, prompts, request, run, tiny_model


@pytest.mark.parametrize("house", ["hybrid"], indirect=True)
def test_tensor_parallel_tokens_equal_those_of_one_device(
    house: House, four_devices: list[jax.Device]
) -> None:
    split = replace(house, model=tiny_model((12, None, 12), devices=2))
    asked = [
        request(f"r{i}", p, temperature=0.0, max_tokens=12, ignore_eos=True)
        for i, p in enumerate(prompts(5, [3, 20, 31]))
    ]
    engine = split.engine(num_pages=24)
    tokens = run(engine, asked)
    for one in asked:
        assert tokens[one.request_id][0] == house.expected(one.prompt_token_ids, one.params)
    assert engine.runner.budget.weights < house.model.weight_bytes
