"""The command itself: help, exit statuses, errors in one line."""

import io
import json
import re
import subprocess
import sys

import pytest

import jaxinfer
from jaxinfer import cli
from jaxinfer.cli import printing
from jaxinfer.cli.arguments import DEFAULT_MODEL
from jaxinfer.errors import CapacityError, InvalidParameter, StepFailed

COMMANDS = ["generate", "chat", "score", "batch", "serve", "inspect", "pull"]
STANDARD_INPUT = [["generate", "-"], ["chat"], ["score", "-"], ["score", "--file", "-"]]
MEASUREMENTS = ["latency", "throughput", "startup", "serve", "streaming"]


def test_the_help_lists_what_there_is(run):
    status, out, _ = run("--help")
    assert status == 0
    assert re.findall(r"^    (\w+)", out, re.MULTILINE) == [*COMMANDS, "bench"]


@pytest.mark.parametrize("words", [[c] for c in COMMANDS] + [["bench", m] for m in MEASUREMENTS])
def test_every_command_has_help_and_json(run, words):
    status, out, _ = run(*words, "--help")
    assert status == 0
    assert "--json" in out
    assert "--debug" in out


def test_the_help_loads_no_jax():
    code = (
        "import sys; from jaxinfer.cli import main; main(['generate', '--help']);"
        "print(sorted({'jax', 'flax', 'numpy', 'tokenizers'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


def test_the_version_is_the_packages(run):
    assert run("--version")[:2] == (0, f"{jaxinfer.__version__}\n")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["unknown"],
        ["generate", "x", "--no-such-flag"],
        ["generate", "x", "--max-tokens", "many"],
        ["generate", "x", "--logit-bias", "3"],
        ["bench"],
        ["bench", "throughput", "--goodput", "speed:3"],
        ["inspect", "--memory", "much"],
        ["inspect", "--memory", "inf"],
        ["inspect", "--memory", "nan"],
        ["inspect", "--memory=-1"],
        ["pull"],
    ],
)
def test_wrong_usage_exits_with_two_and_prints_nothing_on_standard_output(run, words):
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert "usage: jaxinfer" in err


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["generate"], 2, "give the text itself"),
        (["generate", "x", "--file", "y"], 2, "one of them"),
        (["generate", "x", "--temperature", "nan"], 2, "temperature = nan is not allowed"),
        (["generate", "x", "--max-tokens", "0"], 2, "max_tokens = 0 is not allowed"),
        (["generate", "x", "--top-p", "1.5"], 2, "top_p = 1.5"),
        (["generate", "x", "--n", "1000"], 2, "n = 1000"),
        (["generate", "x", "--stop", ""], 2, "stop"),
        (["generate", "--file", "no/such/file"], 1, "no/such/file"),
        (["generate", "x", "--model", "nothing here"], 1, "no model 'nothing here'"),
        (["generate", "x", "--load-format", "dummy", "--model", "m"], 1, "no model 'm'"),
        (["generate", "x", "--load-format", "pt"], 2, "load_format"),
        (["generate", "x", "--load-format", "dummy"], 2, "has no tokenizer"),
        (["chat", "hello", "--n", "2"], 2, "--n 2"),
        (["score"], 2, "give the text itself"),
        (["score", "x", "--file", "y"], 2, "not both"),
        (["inspect", "nothing here"], 1, "no model"),
        (["inspect", "--load-format", "dummy", "--dtype", "int8"], 2, "dtype"),
        (["pull", "unheard-of"], 1, "no known model 'unheard-of'; there are: smollm2-135m"),
        (["bench", "startup", "--model", "nothing here"], 1, "no model 'nothing here'"),
    ],
)
def test_every_error_is_one_line_and_an_exit_status(run, monkeypatch, words, status, message):
    if "has no tokenizer" in message:
        monkeypatch.setattr("jaxinfer.cli.generate.load_llm", _llm_without_tokenizer)
    found, out, err = run(*words)
    assert (found, out) == (status, "")
    [line] = err.splitlines()
    assert line.startswith("jaxinfer: error: ")
    assert message in line


def _llm_without_tokenizer(**settings):
    from jaxinfer.errors import InvalidPrompt

    raise InvalidPrompt("this LLM has no tokenizer")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidParameter("of yours"), 2),
        (CapacityError("too\n  much"), 1),
        (StepFailed("device"), 1),
        (OSError(28, "disk full"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_the_status_says_whose_fault_it_was(run, monkeypatch, error, status):
    def fail(**settings):
        raise error

    monkeypatch.setattr("jaxinfer.cli.generate.load_llm", fail)
    found, out, err = run("generate", "x")
    assert (found, out) == (status, "")
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err


def test_debug_shows_where_an_error_came_from(run, monkeypatch):
    def fail(**settings):
        raise CapacityError("too much")

    monkeypatch.setattr("jaxinfer.cli.generate.load_llm", fail)
    status, _, err = run("generate", "x", "--debug")
    assert status == 1
    assert "Traceback" in err
    assert err.splitlines()[-1] == "jaxinfer: error: too much"


def test_a_bug_is_not_dressed_up_as_a_mistake_of_the_user(run, monkeypatch):
    def fail(**settings):
        raise ZeroDivisionError

    monkeypatch.setattr("jaxinfer.cli.generate.load_llm", fail)
    with pytest.raises(ZeroDivisionError):
        run("generate", "x")


def test_a_reader_that_leaves_early_ends_the_command_quietly():
    command = f"{sys.executable} -m jaxinfer.cli inspect {DEFAULT_MODEL} --load-format dummy"
    pipe = ["bash", "-o", "pipefail", "-c", f"{command} | true"]
    run = subprocess.run(pipe, capture_output=True, text=True)
    assert run.returncode in (0, cli.FAILED)
    assert "BrokenPipe" not in run.stderr


@pytest.mark.parametrize(
    "words",
    [["generate", "--file"], ["score", "--file"], ["bench", "throughput", "--dataset"]],
)
def test_a_file_that_is_no_utf8_is_named(run, loaded, tmp_path, words):
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    status, out, err = run(*words, tmp_path / "latin")
    assert (status, out) == (2, "")
    assert f"{tmp_path / 'latin'} is not UTF-8" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("words", STANDARD_INPUT)
def test_standard_input_that_is_closed_is_wrong_usage(run, loaded, monkeypatch, words):
    monkeypatch.setattr("sys.stdin", None)
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert "standard input is closed" in err
    assert loaded == []


def test_standard_output_is_utf8_whatever_the_locale(run, loaded, tiny_llm, monkeypatch):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr("sys.stdout", stdout)
    assert run("generate", "né", "--max-tokens=1", "--json")[0] == 0
    document = json.loads(stdout.buffer.getvalue().decode("utf-8"))
    assert document["output"]["prompt"] == "né"


def test_half_a_surrogate_pair_on_standard_output_is_escaped(monkeypatch):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
    monkeypatch.setattr("sys.stdout", stdout)
    printing.write_utf8()
    printing.print_json({"text": "\udce9"})
    assert json.loads(stdout.buffer.getvalue()) == {"text": "\udce9"}


@pytest.mark.parametrize("words", STANDARD_INPUT)
def test_standard_input_that_is_no_utf8_is_wrong_usage(run, loaded, monkeypatch, words):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9"), errors="replace"))
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert "standard input is not UTF-8" in err
    assert loaded == []
