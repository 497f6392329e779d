"""What a request may ask for, and what each wrong value is told."""

import inspect
import re

import pytest

from jaxinfer.errors import InvalidParameter
from jaxinfer.sampling_params import RequestLimits, SamplingParams

VOCAB = 100
NAN, INF = float("nan"), float("inf")


def verify(**values: object) -> None:
    SamplingParams(**values).verify(vocab_size=VOCAB)


def test_defaults_are_those_of_vllm():
    parameters = inspect.signature(SamplingParams).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    assert defaults == {
        "n": 1,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "max_tokens": 16,
        "min_tokens": 0,
        "stop": (),
        "stop_token_ids": (),
        "ignore_eos": False,
        "include_stop_str_in_output": False,
        "seed": None,
        "logprobs": None,
        "prompt_logprobs": None,
        "logit_bias": None,
        "allowed_token_ids": None,
        "bad_words": (),
        "structured_outputs": None,
        "skip_special_tokens": True,
        "detokenize": True,
    }  # fmt: skip
    verify()


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": 0},
        {"temperature": -0.0},
        {"temperature": 5e-324},
        {"temperature": 1e-3},
        {"temperature": 1e300},
        {"top_p": 5e-324},
        {"top_p": 1},
        {"top_k": -1},
        {"top_k": 2**40},
        {"min_p": -0.0},
        {"min_p": 1},
        {"presence_penalty": -2},
        {"frequency_penalty": 2.0},
        {"repetition_penalty": 1e-300},
        {"max_tokens": None, "min_tokens": 10**6},
        {"max_tokens": 2**32 - 1},
        {"max_tokens": 5, "min_tokens": 5},
        {"stop": "one"},
        {"stop": ["a", "b"]},
        {"stop": None},
        {"stop": ["é" * 128]},
        {"stop_token_ids": [0, VOCAB - 1]},
        {"seed": 2**64 - 1},
        {"seed": -1},
        {"logprobs": 0},
        {"logprobs": 20, "prompt_logprobs": 20},
        {"logit_bias": {0: -100, 99: 100.0}},
        {"allowed_token_ids": [1, 1, 1]},
        {"bad_words": ["no"]},
        {"n": 128},
    ],
)
def test_values_at_the_borders_are_accepted(values):
    verify(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        *[
            ({name: value}, f"{name} = .* finite")
            for name in (
                "temperature",
                "top_p",
                "min_p",
                "presence_penalty",
                "frequency_penalty",
                "repetition_penalty",
            )
            for value in (NAN, INF, -INF, "0.7", None, True, 10**400, [1.0])
        ],
        ({"temperature": -1e-9}, "temperature = -1e-09 .* at least 0"),
        ({"top_p": 0.0}, "top_p = 0.0 .* above 0, at most 1; use 1 to turn it off"),
        ({"top_p": 1 + 1e-9}, "top_p = 1.000000001"),
        ({"min_p": 1.01}, "min_p = 1.01 .* from 0 to 1"),
        ({"presence_penalty": 2.01}, "presence_penalty = 2.01 .* from -2 to 2"),
        ({"frequency_penalty": -3}, "frequency_penalty = -3 .* from -2 to 2"),
        ({"repetition_penalty": 0.0}, "repetition_penalty = 0.0 .* above 0"),
        ({"n": 0}, "n = 0 .* between 1 and 128"),
        ({"n": 10**9}, "n = 1000000000 .* between 1 and 128"),
        ({"n": 10**5000}, "n = .int too long to show"),
        ({"n": True}, "n = True"),
        ({"n": 2.0}, "n = 2.0 .* an integer"),
        ({"top_k": -2}, "top_k = -2 .* 0 or -1"),
        ({"top_k": 5.0}, "top_k = 5.0"),
        ({"max_tokens": 0}, "max_tokens = 0 .* use None"),
        ({"max_tokens": "16"}, "max_tokens = '16'"),
        ({"min_tokens": -1}, "min_tokens = -1"),
        ({"min_tokens": 17}, "min_tokens = 17 .* at most max_tokens = 16"),
        ({"seed": 2**64}, "seed = "),
        ({"seed": 1.5}, "seed = 1.5"),
        ({"logprobs": 21}, "logprobs = 21 .* between 0 and 20"),
        ({"logprobs": -1}, "logprobs = -1"),
        ({"prompt_logprobs": True}, "prompt_logprobs = True"),
        ({"ignore_eos": 1}, "ignore_eos = 1 .* True or False"),
        ({"skip_special_tokens": None}, "skip_special_tokens = None"),
        ({"stop": ["x"] * 100_000}, "stop holds 100000 strings: at most 16"),
        ({"stop": "x" * 2**20}, "1048576 characters long: at most 256 bytes"),
        ({"stop": "é" * 129}, "129 characters long: at most 256 bytes"),
        ({"stop": ""}, "not empty"),
        ({"stop": [b"x"]}, "made of strings"),
        ({"stop": 5}, "stop = 5 .* a list of strings"),
        ({"stop": "x", "detokenize": False}, "stop = .* use stop_token_ids"),
        ({"bad_words": [""]}, "bad_words .* not empty"),
        ({"bad_words": "word"}, "bad_words = 'word' .* a list"),
        ({"stop_token_ids": [VOCAB]}, f"stop_token_ids = {VOCAB} .* from 0 to 99"),
        ({"stop_token_ids": [-1]}, "stop_token_ids = -1"),
        ({"stop_token_ids": [2**31]}, "stop_token_ids = 2147483648"),
        ({"stop_token_ids": [True]}, "stop_token_ids = True"),
        ({"stop_token_ids": 3}, "stop_token_ids = 3 .* a list"),
        ({"allowed_token_ids": []}, "at least one id; use None"),
        ({"allowed_token_ids": [1] * 4097}, "4097 token ids: at most 4096"),
        ({"allowed_token_ids": ["1"]}, "allowed_token_ids = '1'"),
        ({"logit_bias": {VOCAB: 1.0}}, "logit_bias = 100"),
        ({"logit_bias": {"1": 1.0}}, "logit_bias = '1'"),
        ({"logit_bias": {1: NAN}}, r"logit_bias\[1\] = nan"),
        ({"logit_bias": {1: 101}}, r"logit_bias\[1\] = 101 .* from -100 to 100"),
        ({"logit_bias": [1]}, "logit_bias = .* a dict"),
        ({"logit_bias": dict.fromkeys(range(4097), 1.0)}, "4097 token ids: at most 4096"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(values, message):
    with pytest.raises(InvalidParameter, match=message):
        verify(**values)


def test_limits_are_those_that_were_given():
    limits = RequestLimits(max_n=2, max_logprobs=1)
    SamplingParams(n=2, logprobs=1).verify(vocab_size=VOCAB, limits=limits)
    with pytest.raises(InvalidParameter, match="between 1 and 2"):
        SamplingParams(n=3).verify(vocab_size=VOCAB, limits=limits)


def test_prompt_logprobs_of_a_long_prompt_are_bounded_in_bytes():
    def verify(count, prompt_len):
        limits = RequestLimits(max_prompt_logprobs_bytes=2**24)
        params = SamplingParams(prompt_logprobs=count)
        params.verify(vocab_size=VOCAB, prompt_len=prompt_len, limits=limits)

    verify(None, 10**9)
    with pytest.raises(InvalidParameter) as refused:
        verify(20, 8192)
    message = str(refused.value)
    assert "prompt_logprobs = 20 of 8192 prompt tokens" in message
    assert "at most 16,777,216 are allowed" in message
    [fewer] = map(int, re.findall(r"ask for at most (\d+)", message))
    [shorter] = map(int, re.findall(r"shorten the prompt to (\d+) tokens", message))
    verify(fewer, 8192)
    verify(20, shorter)
    for count, prompt_len in ((fewer + 1, 8192), (20, shorter + 1)):
        with pytest.raises(InvalidParameter, match="prompt_logprobs"):
            verify(count, prompt_len)
    with pytest.raises(InvalidParameter, match="are allowed; shorten the prompt to"):
        verify(0, 2**24)


@pytest.mark.parametrize("prompt_len", [8192, 131072])
def test_any_long_prompt_can_be_scored(prompt_len):
    SamplingParams(prompt_logprobs=0).verify(vocab_size=VOCAB, prompt_len=prompt_len)


def test_one_stop_string_is_a_list_of_one():
    assert SamplingParams(stop="end") == SamplingParams(stop=("end",))
    assert SamplingParams(stop=["end"]).stop_strings == ("end",)
