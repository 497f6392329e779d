"""``chat`` and ``generate`` with a model that a server holds."""

import asyncio
import json
import signal
import subprocess
import sys

import pytest

from serve.settings import ServeSettings
from tests.engine.house import text_of
from tests.serve.house import in_loop, served
from tests.serve.test_auth import Authority

GREEDY = ("--max-tokens=12", "--ignore-eos")


async def typed(run, tested, *words):
    """Runs a command beside the server's loop."""
    server = f"127.0.0.1:{tested.server.grpc_port}"
    return await asyncio.to_thread(run, *words, f"--server={server}")


@in_loop
async def prompted(run, command):
    async with served() as tested:
        tokens = await tested.tokens()
        status, out, err = await typed(run, tested, command, "dbebf", *GREEDY)
        assert (status, out) == (0, text_of(tokens) + "\n")
        assert "first token" in err
        assert "memory" not in err
        status, out, _ = await typed(run, tested, command, "dbebf", *GREEDY, "--json")
        document = json.loads(out)
        [output] = document["output"]["outputs"]
        assert output["token_ids"] == tokens
        assert output["usage"]["completion_tokens"] == 12
        assert document["output"]["num_prompt_tokens"] == 5
        assert document["timing"]["startup"] == {}


@pytest.mark.parametrize("command", ["chat", "generate"])
def test_the_servers_answer_is_shown(run, command):
    prompted(run, command)


@pytest.mark.parametrize("command", ["chat", "generate"])
def test_the_servers_output_matches_what_was_asked_for(run, command):
    @in_loop
    async def ask():
        async with served() as tested:
            words = (command, "dbebf", "--choice=bdb", "--choice=kkkk")
            status, out, _ = await typed(run, tested, *words)
            assert status == 0
            assert out in ("bdb\n", "kkkk\n")
            status, _, err = await typed(run, tested, command, "dbebf", "--regex=zz")
            assert status == 1
            assert "no token of this model" in err

    ask()


def test_a_conversation_goes_on_after_what_the_server_refuses(run, monkeypatch):
    lines = ["a" * 4000, "dbe", "bf", "/exit"]
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt="": lines.pop(0))

    @in_loop
    async def talk():
        async with served() as tested:
            status, out, err = await typed(run, tested, "chat", *GREEDY, "--json")
            first, second = (json.loads(line)["output"] for line in out.splitlines())
            assert status == 0
            assert "the prompt has 4000 tokens" in err
            said = first["outputs"][0]["text"]
            assert first["num_prompt_tokens"] == 3
            assert second["num_prompt_tokens"] == len("dbe" + said + "bf")

    talk()


def test_a_token_is_taken_from_the_flag_or_the_environment(run, monkeypatch, tmp_path):
    authority = Authority(tmp_path)
    settings = ServeSettings(grpc_port=0, tokens=("xyzzy",), tls=authority.files)

    @in_loop
    async def ask():
        async with served(settings, authority.credentials()) as tested:
            server = f"--server=localhost:{tested.server.grpc_port}"
            words = ("generate", "dbe", *GREEDY, server, f"--tls-ca={tmp_path / 'ca.pem'}")
            status, _, err = await asyncio.to_thread(run, *words)
            assert status == 1
            assert "no token" in err
            assert (await asyncio.to_thread(run, *words, "--auth-token=xyzzy"))[0] == 0
            monkeypatch.setenv("JAXINFER_TOKEN", "xyzzy")
            assert (await asyncio.to_thread(run, *words))[0] == 0

    ask()


def test_an_interrupt_ends_the_answer_on_the_server():
    @in_loop
    async def interrupt():
        async with served() as tested:
            server = f"--server=127.0.0.1:{tested.server.grpc_port}"
            words = ("chat", "dbebf", "--ignore-eos", "--max-tokens=3900", server)
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "jaxinfer.cli", *words, stdout=subprocess.PIPE
            )
            await process.stdout.read(1)
            process.send_signal(signal.SIGINT)
            await process.communicate()
            assert process.returncode == 130
            await tested.idle()
            assert tested.house.stats.num_generated_tokens < 3900

    interrupt()


def test_a_server_that_is_not_there_is_said_without_loading_anything():
    code = (
        "import sys; from jaxinfer.cli import main;"
        "print(main(['chat', 'hi', '--server', '127.0.0.1:1']),"
        "sorted({'jax', 'flax', 'numpy', 'tokenizers', 'fastapi'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "1 []\n"
    assert "127.0.0.1:1" in run.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dtype=float32"], "--dtype"),
        (["--max-num-seqs=3"], "--max-num-seqs"),
        (["--no-prefix-caching"], "--no-prefix-caching"),
        (["--tls-ca=absent.pem"], "absent.pem"),
    ],
)
def test_what_only_a_loaded_model_has_is_refused(run, words, said):
    status, out, err = run("generate", "hi", "--server=127.0.0.1:1", *words)
    assert (status, out) == (2, "")
    assert said in err
