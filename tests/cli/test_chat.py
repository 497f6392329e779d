"""``chat``: one answer, or a conversation that knows what was said."""

import io
import json
import signal

import pytest

from jaxinfer import SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=4)


class Terminal:
    """Standard input of a person: a terminal, and what is typed there."""

    def __init__(self, monkeypatch, *lines):
        self._lines = list(lines)
        monkeypatch.setattr("sys.stdin", self)
        monkeypatch.setattr("builtins.input", self.readline)

    def isatty(self):
        return True

    def readline(self, prompt=""):
        if not self._lines:
            raise EOFError
        line = self._lines.pop(0)
        if line == "^C":
            raise KeyboardInterrupt
        if isinstance(line, bytes):
            return line.decode()
        return line


def answer_to(tiny_llm, *messages):
    roles = ("user", "assistant") * len(messages)
    conversation = [
        {"role": role, "content": message} for role, message in zip(roles, messages, strict=False)
    ]
    return tiny_llm.chat(conversation, GREEDY, use_tqdm=False)[0].outputs[0].text


@pytest.fixture
def ascii_only(monkeypatch):
    """Answers that are spelled the same when they are said back."""
    monkeypatch.setattr("jaxinfer.cli.chat.sampling_params", lambda args: _ascii())


def _ascii():
    return SamplingParams(temperature=0, max_tokens=4, allowed_token_ids=list(range(32, 80)))


def test_a_message_is_answered_and_that_is_all(run, loaded, tiny_llm):
    status, out, _ = run("chat", "hi", "--max-tokens=4")
    assert (status, out) == (0, answer_to(tiny_llm, "hi") + "\n")


def test_standard_input_that_is_no_terminal_is_one_message(run, loaded, tiny_llm, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("two\nlines\n"))
    status, out, _ = run("chat", "--max-tokens=4", "--json")
    [sample] = json.loads(out)["output"]["outputs"]
    assert (status, sample["text"]) == (0, answer_to(tiny_llm, "two\nlines"))


def test_the_system_message_comes_first(run_json, loaded):
    [document] = run_json("chat", "hi", "--system=be kind", "--max-tokens=1")
    assert document["output"]["prompt"] == "system:be kind;user:hi;a:"


def test_a_conversation_knows_what_was_said_until_it_is_reset(run, loaded, ascii_only, monkeypatch):
    Terminal(monkeypatch, "hi", "", "so", "/reset", "so", "/exit", "never read")
    status, out, err = run("chat", "--json")
    first, second, third = (json.loads(line)["output"] for line in out.splitlines())
    assert status == 0
    assert second["prompt"] == f"user:hi;assistant:{first['outputs'][0]['text']};user:so;a:"
    assert third["prompt"] == "user:so;a:"
    assert err.startswith("memory: ")
    assert "/reset" in err


def test_a_second_turn_finds_the_first_in_the_prefix_cache(run, loaded, ascii_only, monkeypatch):
    Terminal(monkeypatch, "a first message", "more")
    _, out, _ = run("chat", "--json")
    _, second = (json.loads(line)["output"] for line in out.splitlines())
    assert second["num_cached_tokens"] >= len("user:a first message;") // 8 * 8


def test_a_message_too_long_is_refused_and_the_conversation_goes_on(run, loaded, monkeypatch):
    Terminal(monkeypatch, "x" * 100, "hi")
    status, out, err = run("chat", "--json", "--max-tokens=1")
    assert status == 0
    assert "the prompt has 108 tokens" in err
    assert json.loads(out)["output"]["prompt"] == "user:hi;a:"


def test_a_message_that_is_no_utf8_is_refused_and_the_conversation_goes_on(
    run, loaded, monkeypatch
):
    Terminal(monkeypatch, b"caf\xe9", "hi")
    status, out, err = run("chat", "--json", "--max-tokens=1")
    assert status == 0
    assert "not UTF-8" in err
    assert json.loads(out)["output"]["prompt"] == "user:hi;a:"


def test_an_interrupt_ends_an_answer_and_at_the_prompt_the_conversation(
    run, loaded, tiny_llm, monkeypatch
):
    Terminal(monkeypatch, "hi", "^C")
    read, calls = tiny_llm.engine.runner.read, []

    def interrupted(pending):
        calls.append(signal.raise_signal(signal.SIGINT) if len(calls) == 3 else None)
        return read(pending)

    monkeypatch.setattr(tiny_llm.engine.runner, "read", interrupted)
    status, out, err = run("chat", "--json", "--ignore-eos")
    assert status == 130
    assert json.loads(out)["output"]["outputs"][0]["finish_reason"] == "abort"
    assert err.endswith("interrupted\n")
