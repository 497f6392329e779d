"""``generate``: prints what the LLM generates, and nothing else on standard output."""

import io
import signal

import pytest

from jaxinfer import SamplingParams, StructuredOutputsParams
from jaxinfer.cli.process_clock import process_started_at

GREEDY = SamplingParams(temperature=0, max_tokens=8)


def test_the_text_is_on_standard_output_and_the_times_on_standard_error(run, loaded, tiny_llm):
    [wanted] = tiny_llm.generate("hello", GREEDY, use_tqdm=False)
    status, out, err = run("generate", "hello", "--max-tokens", 8)
    assert (status, out) == (0, wanted.outputs[0].text + "\n")
    assert err.startswith("memory: ")
    assert "first token" in err
    assert "tokens/s" in err


def test_json_is_one_document_with_the_output_and_the_times(run_json, loaded, tiny_llm):
    [document] = run_json("generate", "hello", "--max-tokens", 8, "--logprobs", 1)
    output, timing = document["output"], document["timing"]
    [wanted] = tiny_llm.generate("hello", GREEDY, use_tqdm=False)
    assert output["prompt"] == "hello"
    assert output["prompt_token_ids"] == list(wanted.prompt_token_ids)
    [sample] = output["outputs"]
    assert sample["token_ids"] == list(wanted.outputs[0].token_ids)
    assert sample["finish_reason"] in ("length", "stop")
    assert set(sample["logprobs"][0][str(sample["token_ids"][0])]) == {
        "logprob",
        "rank",
        "decoded_token",
    }
    assert timing["first_token_after_start"] > timing["first_token_after_submission"] > 0
    assert timing["tokens_per_second"] > 0


@pytest.mark.parametrize(
    ("flags", "params"),
    [
        (["--n=2", "--temperature=1", "--seed=3"], {"n": 2, "temperature": 1.0, "seed": 3}),
        (["--temperature=2", "--seed=1", "--top-k=2"], {"temperature": 2.0, "seed": 1, "top_k": 2}),
        (
            ["--temperature=2", "--seed=1", "--top-p=.3"],
            {"temperature": 2.0, "seed": 1, "top_p": 0.3},
        ),
        (
            ["--temperature=2", "--seed=1", "--min-p=.9"],
            {"temperature": 2.0, "seed": 1, "min_p": 0.9},
        ),
        (["--presence-penalty=2"], {"presence_penalty": 2.0}),
        (["--frequency-penalty=2"], {"frequency_penalty": 2.0}),
        (["--repetition-penalty=1.5"], {"repetition_penalty": 1.5}),
        (["--stop=M", "--stop=A"], {"stop": ["M", "A"]}),
        (
            ["--stop=M", "--include-stop-str-in-output"],
            {"stop": "M", "include_stop_str_in_output": True},
        ),
        (
            ["--stop-token-ids", "44", "52", "--min-tokens=3"],
            {"stop_token_ids": [44, 52], "min_tokens": 3},
        ),
        (["--ignore-eos"], {"ignore_eos": True}),
        (["--logit-bias", "44=-100", "7=3.5"], {"logit_bias": {44: -100.0, 7: 3.5}}),
        (["--allowed-token-ids", "70", "71"], {"allowed_token_ids": [70, 71]}),
        (["--bad-words=M", "--bad-words=U"], {"bad_words": ["M", "U"]}),
        (["--regex=[0-9]{3}"], {"structured_outputs": StructuredOutputsParams(regex="[0-9]{3}")}),
        (
            ["--choice=yes", "--choice=no"],
            {"structured_outputs": StructuredOutputsParams(choice=["yes", "no"])},
        ),
        (["--keep-special-tokens"], {"skip_special_tokens": False}),
        (["--prompt-logprobs=1"], {"prompt_logprobs": 1}),
    ],
)
def test_every_flag_is_the_parameter_of_its_name(run_json, loaded, tiny_llm, flags, params):
    settings = {"temperature": 0, "max_tokens": 8} | params
    [wanted] = tiny_llm.generate("abc", SamplingParams(**settings), use_tqdm=False)
    [document] = run_json("generate", "abc", "--max-tokens=8", *flags)
    found = [sample["token_ids"] for sample in document["output"]["outputs"]]
    assert found == [list(sample.token_ids) for sample in wanted.outputs]
    texts = [sample["text"] for sample in document["output"]["outputs"]]
    assert texts == [sample.text for sample in wanted.outputs]
    assert (document["output"]["prompt_logprobs"] is None) == ("prompt_logprobs" not in params)


def test_several_samples_are_printed_one_after_the_other(run, loaded, tiny_llm):
    params = SamplingParams(n=2, temperature=1, seed=3, max_tokens=4)
    [wanted] = tiny_llm.generate("abc", params, use_tqdm=False)
    _, out, _ = run("generate", "abc", "--n=2", "--temperature=1", "--seed=3", "--max-tokens=4")
    assert out == "".join(f"{sample.text}\n\n" for sample in wanted.outputs)


def test_the_text_can_come_from_a_file_or_standard_input(run, loaded, tmp_path, monkeypatch):
    (tmp_path / "prompt").write_text("hello\n")
    words = ["generate", "--max-tokens=4"]
    wanted = run(*words, "hello")[1]
    assert run(*words, "--file", tmp_path / "prompt")[1] == wanted
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    assert run(*words, "-")[1] == wanted


def test_standard_input_is_utf8_whatever_the_locale(run_json, loaded, monkeypatch):
    stdin = io.TextIOWrapper(io.BytesIO("né\n".encode()), encoding="latin-1")
    monkeypatch.setattr("sys.stdin", stdin)
    [document] = run_json("generate", "-", "--max-tokens=1")
    assert document["output"]["prompt"] == "né"


def test_one_request_needs_few_programs(run, loaded):
    run("generate", "x", "--max-tokens=1")
    run("generate", "x", "--max-tokens=1", "--n=4", "--prompt-logprobs=0", "--page-size=8")
    few, more = loaded
    assert few["prefill_tokens"] == (few["max_num_batched_tokens"],)
    assert (few["max_num_seqs"], few["enable_prompt_logprobs"]) == (1, False)
    assert (more["max_num_seqs"], more["enable_prompt_logprobs"]) == (4, True)
    assert more["page_size"] == 8
    assert few["model"] == "smollm2-135m"


@pytest.mark.parametrize("as_json", [False, True])
def test_an_interrupt_shows_the_text_so_far_and_exits_with_130(
    run, loaded, tiny_llm, monkeypatch, as_json
):
    read, calls = tiny_llm.engine.runner.read, []

    def interrupted(pending):
        calls.append(signal.raise_signal(signal.SIGINT) if len(calls) == 3 else None)
        return read(pending)

    monkeypatch.setattr(tiny_llm.engine.runner, "read", interrupted)
    flags = ["--json"] if as_json else []
    status, out, err = run("generate", "hello", "--max-tokens=50", "--ignore-eos", *flags)
    assert status == 130
    assert out.endswith("\n")
    assert "Traceback" not in err
    assert ('"abort"' in out) == as_json


def test_a_device_that_fails_is_one_line(run, loaded, tiny_llm, monkeypatch):
    from jaxinfer.errors import StepFailed

    def fail(pending):
        raise StepFailed("the device failed")

    monkeypatch.setattr(tiny_llm.engine.runner, "read", fail)
    status, _, err = run("generate", "hello")
    assert status == 1
    assert err.endswith("jaxinfer: error: the device failed\n")


def test_a_process_began_before_it_asks():
    import time

    assert 0 < time.monotonic() - process_started_at() < 24 * 3600
