"""What loads ask for."""

import json

import numpy as np
import pytest

from jaxinfer.errors import InvalidParameter
from serve.load import prompts
from serve.load.prompts import Draw, Turn
from tests.serve.house import in_loop

VOCAB = 50


def draw(seed=0):
    return Draw(VOCAB, seed)


def singles(conversations) -> list[Turn]:
    return [turn for [turn] in conversations]


def test_random_prompts_have_their_lengths_and_share_their_prefix():
    turns = singles(
        prompts.random_prompts(
            200, draw(), input_len=20, output_len=10, range_ratio=0.5, prefix_len=5
        )
    )
    assert len({turn.prompt[:5] for turn in turns}) == 1
    assert len({turn.prompt[5:10] for turn in turns}) > 190
    assert {len(turn.prompt) - 5 for turn in turns} == set(range(10, 31))
    assert {turn.output_len for turn in turns} == set(range(5, 16))
    assert {token for turn in turns for token in turn.prompt} == set(range(VOCAB))
    exact = singles(prompts.random_prompts(5, draw(), input_len=7, output_len=3))
    assert {(len(turn.prompt), turn.output_len) for turn in exact} == {(7, 3)}


def test_the_seed_says_which_prompts():
    def of(seed):
        return prompts.random_prompts(3, draw(seed), input_len=9, output_len=2)

    assert of(1) == of(1) != of(2)


def test_lengths_like_sharegpts_have_its_means_and_stay_in_the_context():
    law = draw()
    lengths = [law.lognormal(161.31, 1.3, least=1, most=10**9) for _ in range(50_000)]
    assert np.mean(lengths) == pytest.approx(161.31, rel=0.05)
    turns = singles(prompts.sharegpt_like(500, draw(), max_len=600))
    assert min(len(turn.prompt) for turn in turns) >= 4
    assert max(len(turn.prompt) + turn.output_len for turn in turns) <= 600
    assert min(turn.output_len for turn in turns) >= 4


def test_prefixes_are_repeated_equally_often():
    turns = singles(
        prompts.prefix_repetition(
            30, draw(), num_prefixes=3, prefix_len=8, suffix_len=4, output_len=2
        )
    )
    counts = {}
    for turn in turns:
        assert len(turn.prompt) == 12
        counts[turn.prompt[:8]] = counts.get(turn.prompt[:8], 0) + 1
    assert list(counts.values()) == [10, 10, 10]
    assert [turn.prompt[:8] for turn in turns[:3]] * 10 != [turn.prompt[:8] for turn in turns]


def test_conversations_begin_with_one_system_prompt():
    talks = prompts.multi_turn(4, draw(), num_turns=3, system_len=10, user_len=5, output_len=6)
    assert len({talk[0].prompt[:10] for talk in talks}) == 1
    for talk in talks:
        assert [len(turn.prompt) for turn in talk] == [15, 5, 5]
        assert [len(turn.stand_in) for turn in talk] == [6, 6, 6]


def test_prompts_come_from_a_file(tmp_path):
    path = tmp_path / "prompts"
    path.write_text('plain\n{"prompt": [1, 2], "output_len": 3}\n')
    assert singles(prompts.from_file(path, num=None, output_len=9)) == [
        Turn(prompt="plain", output_len=9),
        Turn(prompt=(1, 2), output_len=3),
    ]


@in_loop
async def test_sharegpts_file_gives_first_questions_with_the_lengths_of_their_answers(tmp_path):
    async def count(text):
        return len(text)

    def entry(*values):
        return {"conversations": [{"from": "x", "value": value} for value in values]}

    path = tmp_path / "sharegpt.json"
    whole = [
        entry("question", "answer", "more"),
        entry("hm", "too short a question"),
        entry("x" * 2000, "too long a question"),
        entry("nobody answered"),
    ]
    path.write_text(json.dumps(whole))
    found = await prompts.from_sharegpt(path, num=10, draw=draw(), count=count)
    assert singles(found) == [Turn(prompt="question", output_len=len("answer"))]
    path.write_text(json.dumps(whole[1:]))
    with pytest.raises(InvalidParameter, match="fitting"):
        await prompts.from_sharegpt(path, num=10, draw=draw(), count=count)
    for text in ("no json", "[1]", '{"conversations": 3}'):
        path.write_text(text)
        with pytest.raises(InvalidParameter, match="ShareGPT"):
            await prompts.from_sharegpt(path, num=10, draw=draw(), count=count)


@pytest.mark.parametrize(
    "options",
    [
        {"input_len": 0, "output_len": 1},
        {"input_len": 1, "output_len": 0},
        {"input_len": 1, "output_len": 1, "range_ratio": 1.0},
    ],
)
def test_lengths_of_nothing_are_refused(options):
    with pytest.raises(InvalidParameter):
        prompts.random_prompts(1, draw(), **options)


def test_a_load_that_no_context_holds_is_refused():
    talks = prompts.multi_turn(1, draw(), num_turns=2, system_len=10, user_len=5, output_len=6)
    prompts.require_room(talks, 32)
    with pytest.raises(InvalidParameter, match="32 tokens"):
        prompts.require_room(talks, 31)
