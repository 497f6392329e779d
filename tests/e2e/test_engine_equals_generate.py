"""The engine's tokens are the plain loop's tokens, however requests are batched.

Float32; the plain loop asserts at every greedy token that the best two logits are apart.
"""

import pytest

from jaxinfer.decoding.programs import ProgramTable
from tests.e2e.tiny import EOS, House, prompts, request, run

GREEDY = {"temperature": 0.0, "max_tokens": 20, "ignore_eos": True}
SEEDED = {"temperature": 0.9, "top_p": 0.9, "max_tokens": 20, "seed": 11, "ignore_eos": True}


def assert_equal_to_plain_loop(house: House, tokens: dict, asked: list) -> None:
    for one in asked:
        for index in range(one.params.n):
            expected = house.expected(one.prompt_token_ids, one.params, index)
            assert tokens[one.request_id][index] == expected, (one.request_id, index)


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_many_ragged_requests_equal_each_alone(house: House, params: dict) -> None:
    asked = [request(f"r{i}", p, **params) for i, p in enumerate(prompts(9, [1, 5, 17, 30, 8]))]
    assert_equal_to_plain_loop(house, run(house.engine(), asked), asked)


def test_preemption_changes_no_token(house: House) -> None:
    engine = house.engine(num_pages=10, enable_prefix_caching=False)
    asked = [request(f"r{i}", p, **GREEDY) for i, p in enumerate(prompts(6, [14, 9, 20]))]
    assert_equal_to_plain_loop(house, run(engine, asked), asked)
    assert engine.stats.num_preemptions > 0


def test_a_prefix_hit_changes_no_token(house: House) -> None:
    engine = house.engine()
    shared = prompts(1, [26])[0]
    asked = [request(f"r{i}", [*shared, *tail], **GREEDY) for i, tail in enumerate(prompts(3, [4]))]
    for one in asked:
        assert_equal_to_plain_loop(house, run(engine, [one]), [one])
    assert engine.stats.prefix_hit_tokens > 0


def test_samples_of_one_prompt_share_its_pages_and_differ_as_alone(house: House) -> None:
    engine = house.engine()
    asked = [request("a", prompts(1, [13])[0], **(SEEDED | {"n": 4}))]
    tokens = run(engine, asked)
    assert_equal_to_plain_loop(house, tokens, asked)
    assert len({tuple(sample) for sample in tokens["a"]}) > 1
    assert engine.stats.num_forks == 3
    assert engine.stats.num_copied_pages > 0


def test_samples_through_one_slot_are_those_of_four(house: House) -> None:
    asked = [request("a", prompts(1, [13])[0], **(SEEDED | {"n": 3}))]
    engine = house.engine(max_num_seqs=1)
    tokens = run(engine, asked)
    assert tokens == run(house.engine(), asked)
    assert_equal_to_plain_loop(house, tokens, asked)
    assert len({tuple(sample) for sample in tokens["a"]}) > 1
    assert engine.stats.num_copied_pages == 0


@pytest.mark.parametrize("has_loops", [True, False], ids=["in a loop", "written out, for a GPU"])
def test_several_decode_steps_in_one_call_equal_one_at_a_time(
    has_loops: bool, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ProgramTable, "_has_loops", has_loops)
    engine = house.engine(decode_steps=(1, 4))
    asked = [request(f"r{i}", p, **GREEDY) for i, p in enumerate(prompts(3, [6, 11]))]
    assert_equal_to_plain_loop(house, run(engine, asked), asked)
    assert engine.stats.num_micro_steps > engine.stats.num_steps


def test_the_end_of_sequence_token_ends_it_on_the_device(house: House) -> None:
    params = {"temperature": 1.0, "seed": 5, "max_tokens": 40, "logit_bias": {EOS: 4.0}}
    asked = [request(f"r{i}", p, **params) for i, p in enumerate(prompts(5, [6, 11]))]
    tokens = run(house.engine(), asked)
    assert_equal_to_plain_loop(house, tokens, asked)
    assert any(sample[0][-1] == EOS for sample in tokens.values())


def test_penalties_survive_preemption(house: House) -> None:
    params = GREEDY | {"frequency_penalty": 0.5, "repetition_penalty": 1.2}
    engine = house.engine(num_pages=10, enable_prefix_caching=False)
    asked = [request(f"r{i}", p, **params) for i, p in enumerate(prompts(6, [14, 9, 20]))]
    assert_equal_to_plain_loop(house, run(engine, asked), asked)
    assert engine.stats.num_preemptions > 0
