"""Scores equal the log-probabilities of the same tokens, however they are asked for."""

import math

import pytest

from jaxinfer import SamplingParams
from jaxinfer.errors import InvalidPrompt
from jaxinfer.llm import Score
from jaxinfer.llm.score import read_scorables


def test_a_text_is_scored_from_its_second_token_on(llm):
    [score] = llm.score("hello there", use_tqdm=False)
    [output] = llm.generate(
        "hello there", SamplingParams(prompt_logprobs=0, max_tokens=1), use_tqdm=False
    )
    ids = output.prompt_token_ids
    wanted = [output.prompt_logprobs[i][ids[i]].logprob for i in range(1, len(ids))]
    assert score.token_ids == ids[1:]
    assert score.token_logprobs == pytest.approx(wanted, abs=1e-5)
    assert score.logprob == pytest.approx(sum(wanted), abs=1e-4)
    assert score.perplexity == pytest.approx(math.exp(-sum(wanted) / len(wanted)), rel=1e-5)


def test_a_text_is_its_beginning_and_the_continuation_of_that(llm):
    whole, rest = llm.score(["hello", ("hel", "lo")], use_tqdm=False)
    assert rest.token_ids == whole.token_ids[2:]
    assert rest.token_logprobs == pytest.approx(whole.token_logprobs[2:], abs=1e-5)


def test_token_ids_are_scored_as_the_text_is(llm):
    encode = llm.get_tokenizer().encode
    pair = ({"prompt_token_ids": encode("hel")}, {"prompt_token_ids": encode("lo")})
    by_text, by_ids, mixed = llm.score([("hel", "lo"), pair, ("hel", pair[1])], use_tqdm=False)
    assert by_text.token_ids == by_ids.token_ids == mixed.token_ids
    assert by_text.token_logprobs == pytest.approx(by_ids.token_logprobs, abs=1e-5)
    assert by_text.token_logprobs == pytest.approx(mixed.token_logprobs, abs=1e-5)


def test_what_greedy_decoding_wrote_is_greedy_with_the_same_logprobs(llm):
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, logprobs=0)
    [output] = llm.generate("hello", params, use_tqdm=False)
    written = output.outputs[0]
    context = {"prompt_token_ids": output.prompt_token_ids}
    other = tuple((token + 1) % 250 for token in written.token_ids)
    same, different = llm.score(
        [(context, {"prompt_token_ids": ids}) for ids in (written.token_ids, other)],
        use_tqdm=False,
    )
    assert same.is_greedy
    assert not different.is_greedy
    assert same.logprob == pytest.approx(written.cumulative_logprob, abs=1e-4)


def test_a_cached_prefix_changes_no_score(llm):
    text = "a text of several pages, scored twice"
    [first], [again] = (llm.score(text, use_tqdm=False) for _ in range(2))
    assert first == again


def test_perplexity_of_certainty_is_one():
    assert Score(token_ids=(1, 2), token_logprobs=(0.0, 0.0), is_greedy=True).perplexity == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "nothing to score"),
        ("x", "nothing to score"),
        (("context", ""), "nothing to score"),
        (("a", "b", "c"), "a pair to score"),
        (5, "a text to score is"),
        (["a", "b"], "a text to score is"),
        ([], "a text to score is"),
        (("a", ["b", "c"]), "a text to score is"),
        ((["a"], "b"), "a text to score is"),
        (("a", None), "a text to score is"),
    ],
)
def test_what_has_nothing_to_score_is_refused(llm, text, message):
    with pytest.raises(InvalidPrompt, match=message):
        llm.score([text], use_tqdm=False)


def test_a_continuation_of_token_ids_gets_no_token_of_a_beginning():
    class Tokenizer:
        def encode(self, text, *, add_special_tokens=True):
            return [256] * add_special_tokens + list(text.encode())

    [scored] = read_scorables(({"prompt_token_ids": [256, 1]}, "ab"), Tokenizer())
    assert scored.prompt.token_ids == [256, 1, 97, 98]
    assert scored.first == 2
