"""``serve``: a process that is ready when it says so, and ends when what it had to do is done."""

import json
import signal
import socket
import subprocess
import sys

import grpc
import httpx
import pytest

from serve.model import ServedModel
from serve.proto import inference_pb2 as pb
from serve.proto import inference_pb2_grpc as pb_grpc

SMALL = (
    "--load-format=dummy",
    "--max-num-seqs=2",
    "--max-num-batched-tokens=32",
    "--max-model-len=64",
    "--page-size=8",
)


def test_it_answers_as_generate_does_and_sigterm_lets_it_finish(tiny_directory, run_json):
    model = ("--model", str(tiny_directory), *SMALL)
    ports = ("--grpc-port=0", "--http-port=0")
    command = [sys.executable, "-m", "jaxinfer.cli", "serve", "--json", *ports, *model]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        told = json.loads(server.stdout.readline())
        address, http = told["grpc"], f"http://{told['http']}"
        completion = {"prompt": "hello", "temperature": 0, "max_tokens": 48, "ignore_eos": True}
        answer = httpx.post(f"{http}/v1/completions", json=completion, timeout=60).json()
        with grpc.insecure_channel(address) as channel:
            stub = pb_grpc.InferenceStub(channel)
            asked = pb.GenerateRequest(
                text="hello",
                sampling=pb.Sampling(temperature=0),
                stopping=pb.Stopping(max_tokens=48, ignore_eos=True),
            )
            events = stub.GenerateStream(asked)
            next(events)
            server.send_signal(signal.SIGTERM)
            tokens = [token for event in events for token in event.delta.token_ids]
        assert server.wait(timeout=60) == 0
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
    [document] = run_json("generate", "hello", "--max-tokens", 48, "--ignore-eos", *model)
    [output] = document["output"]["outputs"]
    assert tokens == output["token_ids"]
    assert answer["choices"][0]["text"] == output["text"]


def test_clients_and_dashboards_are_told_the_facts_of_the_llm(tiny_llm):
    model = ServedModel.of(tiny_llm, "tiny")
    info = pb.GetModelInfoResponse(**model.facts)
    assert info.architecture == tiny_llm.config.model_type
    assert info.weight_bytes == tiny_llm.weight_bytes
    assert sum(model.memory_budget.values()) == tiny_llm.budget.total
    assert set(model.server_facts["startup_seconds"]) == {"open", "load", "compile", "warm"}
    assert model.num_compiles() == tiny_llm.num_compiles


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_port_that_is_taken_is_said_before_anything_is_loaded(run, protocol):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ports = {"grpc": 0, "http": 0} | {protocol: port}
        flags = [f"--{name}-port={number}" for name, number in ports.items()]
        status, out, err = run("serve", *flags, "--model", "no-such-model")
    assert (status, out) == (1, "")
    assert f"cannot listen on 127.0.0.1:{port}" in err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--tls-key", "k.pem"], "both --tls-certificate and --tls-key"),
        (["--tls-certificate", "absent.pem", "--tls-key", "absent.key"], "absent.pem"),
        (["--auth-tokens-file", "absent"], "the file of tokens 'absent' cannot be read"),
    ],
)
def test_files_that_are_missing_are_said_before_anything_is_loaded(run, flags, words):
    status, out, err = run(
        "serve", "--grpc-port=0", "--no-http", "--model", "no-such-model", *flags
    )
    assert (status, out) == (2, "")
    assert words in err
