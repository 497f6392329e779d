"""Guided requests in the engine, on a model and guides that can be worked out by hand."""

import random

import pytest

from jaxinfer.engine import Engine, Request
from jaxinfer.errors import InvalidParameter, UnsatisfiableGuide
from jaxinfer.guides import GuideMatcher
from jaxinfer.outputs import FinishReason
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.structured_outputs import StructuredOutputsParams
from tests.engine.guides import GUIDES, follows
from tests.engine.house import House, full_group, text_of, window_group

AHEAD = pytest.mark.parametrize("lookahead", [True, False], ids=["ahead", "plain"])


def regex(text: str) -> StructuredOutputsParams:
    return StructuredOutputsParams(regex=text)


@AHEAD
@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"ignore_eos": True},
        {"n": 3, "seed": 7, "logprobs": 2},
        {"stop": ["cd", "e"]},
        {"stop_token_ids": [3]},
        {"bad_words": ["bc", "d", "kk"]},
        {"allowed_token_ids": [0, 1, 2, 3]},
        {"allowed_token_ids": [1, 2, 3, 10]},
        {"min_tokens": 3},
    ],
    ids=str,
)
def test_an_output_is_what_a_plain_loop_finds_within_its_guide(guide, params, lookahead):
    house = House(lookahead=lookahead, decode_steps=(1, 4))
    params = {"max_tokens": 7} | params
    names = [f"r{number}" for number in range(6)]
    for number, name in enumerate(names):
        house.submit(name, [number + 1, 2], structured_outputs=GUIDES[guide], **params)
    house.run()
    for name in names:
        assert_as_expected_or_failed(house, name)
    house.assert_idle()


def assert_as_expected_or_failed(house: House, name: str) -> None:
    """A request ends with an error where one of its outputs finds no way on, and else as it
    should."""
    expected = [house.expected(name, index) for index in range(house.requests[name].params.n)]
    if any(output.finish_reason is FinishReason.ERROR for output in expected):
        assert house.output(name).finish_reason in (FinishReason.ERROR, expected[0].finish_reason)
        assert any("no other matches" in event.error for event in house.events[name] if event.error)
    else:
        house.assert_as_expected(name)


@pytest.mark.parametrize("seed", range(20))
def test_guides_hold_in_a_crowd_in_a_small_pool(seed):
    chance = random.Random(seed)
    house = House(
        chance.choice([(full_group(9),), (full_group(9), window_group(6, 7))]),
        lookahead=chance.random() < 0.7,
        decode_steps=chance.choice([(1,), (1, 3)]),
        max_model_len=32,
        max_num_seqs=chance.randint(1, 4),
        max_num_batched_tokens=chance.randint(4, 16),
    )
    for number in range(10):
        house.submit(
            f"r{number}",
            [*chance.choice([[], [1, 2, 3, 4, 5, 6, 7, 8, 9], [6] * 14]), number + 1],
            n=chance.choice([1, 1, 3]),
            max_tokens=chance.randint(1, 9),
            priority=chance.choice([0, 0, 1]),
            stop=chance.choice([(), ("c", "bd")]),
            bad_words=chance.choice([(), ("ab", "de")]),
            structured_outputs=chance.choice([None, None, *GUIDES.values()]),
        )
        for _ in range(chance.choice([0, 0, 1, 4, 9])):
            house.step()
    house.run()
    for number in range(10):
        assert_as_expected_or_failed(house, f"r{number}")
    house.assert_idle()


@AHEAD
def test_the_neighbours_of_a_guided_request_get_their_tokens_in_as_many_steps(lookahead):
    def steps_and_tokens(guide):
        house = House(lookahead=lookahead)
        for name in "abc":
            house.submit(name, [3, 1], max_tokens=9, ignore_eos=True)
        house.submit("guided", [4, 1], max_tokens=9, ignore_eos=True, structured_outputs=guide)
        house.run()
        return len(house.runner.plans), [house.output(name) for name in "abc"]

    assert steps_and_tokens(None) == steps_and_tokens(GUIDES["any"])


@AHEAD
def test_one_step_a_call_while_a_guided_sequence_lives(lookahead):
    house = House(lookahead=lookahead, decode_steps=(1, 4))
    house.submit("guided", [3], max_tokens=5, ignore_eos=True, structured_outputs=GUIDES["any"])
    house.submit("free", [3], max_tokens=14, ignore_eos=True)
    house.run()
    num_steps = [plan.num_steps for plan in house.runner.plans]
    assert num_steps[:5] == [1] * 5
    assert 4 in num_steps[5:]


@AHEAD
def test_a_text_that_is_complete_ends_with_stop_without_another_token(lookahead):
    house = House(lookahead=lookahead)
    word = StructuredOutputsParams(choice=["bcd"])
    house.submit("r", [5], max_tokens=9, structured_outputs=word)
    house.submit("to the last token", [5], max_tokens=3, structured_outputs=word)
    house.submit("too few", [5], max_tokens=2, structured_outputs=word)
    house.run()
    for name in ("r", "to the last token"):
        assert house.output(name).text == "bcd"
        assert house.output(name).tokens == [1, 2, 3]
        assert house.output(name).finish_reason is FinishReason.STOP
        assert house.output(name).stop_reason is None
    assert house.output("too few").finish_reason is FinishReason.LENGTH


@AHEAD
def test_a_sequence_goes_on_in_its_guide_after_preemption(lookahead):
    house = House((full_group(6),), lookahead=lookahead, max_num_seqs=2)
    for name in "ab":
        house.submit(
            name, [3, 1, 4], max_tokens=14, ignore_eos=True, structured_outputs=GUIDES["any"]
        )
    house.run()
    assert house.stats.num_preemptions > 0
    for name in "ab":
        house.assert_as_expected(name)


@AHEAD
@pytest.mark.parametrize("where", ["launch", "sample", "read"])
def test_a_sequence_goes_on_in_its_guide_after_a_failed_step(where, lookahead):
    house = House(lookahead=lookahead)
    house.submit("r", [3], max_tokens=12, structured_outputs=regex("(bc|de|fg|hi|jk){5}"))
    for _ in range(3):
        house.step()
    house.runner.fail_on = where
    house.run()
    text = house.output("r").text
    assert len(text) == 10
    assert {text[i : i + 2] for i in range(0, 10, 2)} <= {"bc", "de", "fg", "hi", "jk"}
    assert house.output("r").finish_reason is FinishReason.STOP


@AHEAD
@pytest.mark.parametrize("num_steps", range(5))
def test_an_abort_or_a_deadline_ends_a_guided_request_and_nothing_else(num_steps, lookahead):
    house = House(lookahead=lookahead)
    params = {"max_tokens": 9, "ignore_eos": True, "structured_outputs": GUIDES["any"]}
    house.submit("aborted", [3], n=2, **params)
    house.submit("late", [3], deadline=num_steps, **params)
    house.submit("other", [3], **params)
    for _ in range(num_steps):
        house.step()
        house.now += 1
    house.engine.abort("aborted")
    house.now = num_steps
    house.run()
    assert house.output("aborted").finish_reason is FinishReason.ABORT
    assert house.output("late").finish_reason is FinishReason.DEADLINE
    house.assert_as_expected("other")
    house.assert_idle()


@AHEAD
def test_a_guide_that_nothing_allowed_can_go_on_with_ends_its_request_alone(lookahead):
    house = House(lookahead=lookahead)
    house.submit(
        "stuck", [3], n=2, structured_outputs=regex("bbcc"), allowed_token_ids=[1], max_tokens=9
    )
    house.submit("other", [3], structured_outputs=regex("bbcc"), max_tokens=9)
    house.run()
    assert house.output("stuck").tokens == [1, 1]
    assert house.output("stuck").finish_reason is FinishReason.ERROR
    error = house.events["stuck"][-1].error
    assert "after 2 tokens no other matches it that allowed_token_ids" in error
    assert house.output("other").text == "bbcc"
    house.assert_idle()


@AHEAD
def test_a_text_that_is_complete_before_min_tokens_is_an_error(lookahead):
    house = House(lookahead=lookahead)
    house.submit("r", [3], structured_outputs=regex("bcd"), min_tokens=5, max_tokens=9)
    house.run()
    assert house.output("r").tokens == [1, 2, 3]
    assert "min_tokens" in house.events["r"][-1].error
    house.assert_idle()


@AHEAD
def test_a_guide_that_becomes_too_complex_ends_its_request_alone(lookahead, monkeypatch):
    monkeypatch.setattr("jaxinfer.guides.compiler._MAX_LEXER_STATES", 60)
    house = House(lookahead=lookahead)
    house.submit("r", [3], structured_outputs=regex("[b-l]*b[b-l]{20}"), max_tokens=40)
    house.submit("other", [3], max_tokens=40)
    house.run()
    assert house.output("r").finish_reason is FinishReason.ERROR
    assert "too many states" in house.events["r"][-1].error
    house.assert_as_expected("other")
    house.assert_idle()


@AHEAD
def test_a_guide_that_fails_in_a_way_of_its_own_ends_its_request_alone(lookahead, monkeypatch):
    house = House(lookahead=lookahead)
    house.submit("r", [3], n=2, structured_outputs=regex("bcdefgh"), max_tokens=9)
    house.submit("other", [3], max_tokens=9)
    house.step()
    monkeypatch.setattr(GuideMatcher, "next_ids", lambda self: 1 // 0)
    house.run()
    assert house.output("r", 0).finish_reason is FinishReason.ERROR
    assert house.output("r", 1).finish_reason is FinishReason.ERROR
    assert "ZeroDivisionError" in house.events["r"][-1].error
    house.assert_as_expected("other")
    house.assert_idle()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"structured_outputs": regex("zz")}, "no token of this model can begin"),
        ({"structured_outputs": regex("a")}, "no token of this model can begin"),
        ({"structured_outputs": regex("b{0}")}, "no token of this model can begin"),
        ({"structured_outputs": regex("bc"), "allowed_token_ids": [2]}, "after 0 tokens"),
        ({"structured_outputs": regex("bc"), "stop_token_ids": [1]}, "after 0 tokens"),
        ({"structured_outputs": regex("bc"), "bad_words": ["b"]}, "after 0 tokens"),
    ],
)
def test_a_guide_that_allows_nothing_is_refused_on_submission(params, message):
    house = House()
    with pytest.raises(UnsatisfiableGuide, match=message):
        house.submit("r", [3], **params)
    house.assert_idle()


def test_a_guide_without_a_tokenizer_is_refused():
    engine = Engine(House().runner)
    request = Request(
        request_id="r",
        prompt_token_ids=(3,),
        params=SamplingParams(structured_outputs=regex("b")),
    )
    with pytest.raises(InvalidParameter, match="need a tokenizer"):
        engine.submit(request, pytest.fail)
    assert not engine.num_unfinished


def test_what_was_compiled_before_is_not_compiled_again(monkeypatch):
    house, guide = House(), GUIDES["words"].guide
    compiled = house.engine.begin_guide(guide).result()
    monkeypatch.setattr("jaxinfer.guides.compiler.LLMatcher", None, raising=False)
    assert house.engine.begin_guide(guide).result() is compiled
    house.engine._constraints.close()
    house.submit("r", [3], structured_outputs=GUIDES["words"], guide=compiled, max_tokens=9)
    house.run()
    house.assert_as_expected("r")


def test_the_guides_of_these_tests_say_of_every_text_what_the_library_says():
    house = House()
    for name, guide in GUIDES.items():
        compiled = house.engine.begin_guide(guide.guide).result()
        for number in range(30):
            chance, matcher, text = random.Random(number), compiled.matcher(), []
            while len(text) < 8:
                allowed, may_end = follows(name, text_of(text))
                assert matcher.is_accepting == may_end
                assert matcher.is_complete == (not allowed)
                if not allowed:
                    break
                assert set(ids_of(matcher.next_ids())) == allowed
                text.append(chance.choice(sorted(allowed)))
                matcher.follow(text)


def ids_of(words) -> list[int]:
    return [i for i in range(12) if int(words[0]) >> i & 1]


def test_the_wish_is_part_of_the_sampling_parameters():
    params = SamplingParams(structured_outputs={"regex": "b"})
    with pytest.raises(InvalidParameter, match=r"structured_outputs = .* StructuredOutputsParams"):
        params.verify(vocab_size=12)
