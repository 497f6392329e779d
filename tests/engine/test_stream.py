"""One output's text, and where it ends."""

import tracemalloc

import numpy as np
import pytest

from jaxinfer.engine.step import Finish, PromptLogprobs
from jaxinfer.engine.stream import LogprobTable, OutputStream
from jaxinfer.errors import InvalidParameter
from jaxinfer.outputs import FinishReason
from jaxinfer.sampling_params import RequestLimits, SamplingParams
from tests.engine.house import FakeTokenizer

A, B, C, D = range(4)


def stream(tokenizer=None, **params):
    return OutputStream(SamplingParams(**params), tokenizer or FakeTokenizer())


def test_what_may_become_a_stop_string_is_held_back():
    output = stream(stop="bcd")
    assert [output.push([token]).text for token in (A, B, C, B, C)] == ["a", "", "", "bc", ""]
    assert output.push([A]).text == "bca"


def test_a_stop_string_cuts_text_and_tokens():
    delta = stream(stop=["bc"]).push([A, B, C, D])
    assert (delta.num_kept, delta.text) == (3, "a")
    assert (delta.finish_reason, delta.stop_reason) == (FinishReason.STOP, "bc")


def test_a_stop_string_may_stay_in_the_text():
    assert stream(stop=["bc"], include_stop_str_in_output=True).push([A, B, C]).text == "abc"


def test_a_stop_string_at_the_last_token_wins_over_the_length():
    delta = stream(stop="b").push([A, B], Finish.LENGTH)
    assert (delta.finish_reason, delta.stop_reason) == (FinishReason.STOP, "b")


def test_no_stop_string_is_looked_for_in_the_first_min_tokens():
    output = stream(stop="b", min_tokens=2)
    assert output.push([A, B]).text == "ab"
    assert output.push([C, B]).stop_reason == "b"


def test_a_stop_token_leaves_no_text_unless_asked_for():
    delta = stream(stop_token_ids=[C]).push([A, C], Finish.STOP)
    assert (delta.num_kept, delta.text, delta.stop_reason) == (2, "a", C)
    kept = stream(stop_token_ids=[C], include_stop_str_in_output=True).push([A, C], Finish.STOP)
    assert kept.text == "ac"


def test_the_models_own_end_has_no_stop_reason():
    delta = stream(stop_token_ids=[C]).push([A, B], Finish.STOP)
    assert (delta.finish_reason, delta.stop_reason) == (FinishReason.STOP, None)


def test_what_was_held_back_comes_out_at_the_end():
    assert stream(stop="bcd").push([A, B, C], Finish.LENGTH).text == "abc"
    output = stream(stop="bcd")
    output.push([A, B])
    assert output.flush() == "b"


def test_a_character_that_stays_unfinished_becomes_a_replacement():
    class Bytes(FakeTokenizer):
        def token_bytes(self, token_id):
            return b"\xc3\xa9"[token_id : token_id + 1]

    output = stream(Bytes())
    assert [output.push([0]).text, output.push([1]).text] == ["", "é"]
    assert output.push([0], Finish.LENGTH).text == "�"


@pytest.mark.parametrize("output", [OutputStream(SamplingParams(), None), stream(detokenize=False)])
def test_without_a_tokenizer_there_is_no_text(output):
    delta = output.push([A, B], Finish.LENGTH)
    assert (delta.num_kept, delta.text, delta.finish_reason) == (2, "", FinishReason.LENGTH)


@pytest.mark.parametrize("count", [0, 1, 5, 20])
def test_prompt_logprobs_that_are_allowed_take_no_more_memory_than_that(count):
    class Tokenizer:
        def id_to_token(self, token_id):
            return f"the text of {token_id}"

    limits, wanted = RequestLimits(max_prompt_logprobs_bytes=2**20), 0
    while is_allowed(wanted + 1, count, limits):
        wanted += 1
    tops = np.arange(1000, 1000 + wanted * 20).reshape(wanted, 20)
    found = PromptLogprobs(
        logprob_C=tops[:, 0] / -1e6,
        rank_C=tops[:, 0],
        top_ids_CA=tops,
        top_logprobs_CA=tops / -1e6,
    )
    table = LogprobTable(Tokenizer())
    tracemalloc.start()
    try:
        positions = table.of_prompt(-tops[:, 0], found, count)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert {len(position) for position in positions} == {count + 1}
    assert taken <= 2**20


def is_allowed(prompt_len, count, limits):
    try:
        params = SamplingParams(prompt_logprobs=count)
        params.verify(vocab_size=100, prompt_len=prompt_len, limits=limits)
    except InvalidParameter:
        return False
    return True
