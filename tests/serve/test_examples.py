"""The examples, and the commands in README, against a server."""

import asyncio
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from serve.proto import inference_pb2 as pb
from tests.engine.house import text_of
from tests.serve.house import CANARY, in_loop, served

SERVE = Path(__file__).parents[2] / "serve"
NODE = SERVE / "examples" / "node"
PROMPT = text_of(CANARY.token_ids.ids)
COMMANDS = [
    line
    for line in (SERVE / "README.md").read_text().replace("\\\n", " ").splitlines()
    if line.startswith("grpcurl ")
]


async def shown(words, *, cwd=None) -> str:
    """What a program prints; it succeeds."""
    process = await asyncio.create_subprocess_exec(
        *words,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(SERVE.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


async def expected(tested) -> pb.GeneratedOutput:
    """What programs that ask for 16 greedy tokens are told."""
    request = pb.GenerateRequest(
        text=PROMPT, sampling=pb.Sampling(temperature=0), stopping=pb.Stopping(max_tokens=16)
    )
    return (await tested.stub.Generate(request)).outputs[0]


@in_loop
async def test_the_python_example_runs():
    async with served() as tested:
        address = f"127.0.0.1:{tested.server.grpc_port}"
        program = str(SERVE / "examples" / "generate.py")
        lines = (await shown([sys.executable, program, address, PROMPT])).splitlines()
        output = await expected(tested)
        assert lines[:2] == ["tiny: 4000 tokens of context", f"{PROMPT}{output.text}"]
        assert lines[3].startswith(output.text)


def _has_node_packages() -> bool:
    if shutil.which("node") is None:
        return False
    resolve = "require.resolve('@grpc/grpc-js'); require.resolve('@grpc/proto-loader')"
    return subprocess.run(["node", "-e", resolve], cwd=NODE, capture_output=True).returncode == 0


@in_loop
async def test_the_node_example_runs():
    if not _has_node_packages():
        pytest.skip("needs node, and `npm install` in serve/examples/node")
    async with served() as tested:
        address = f"127.0.0.1:{tested.server.grpc_port}"
        out = await shown(["node", "generate.js", address, PROMPT], cwd=NODE)
        output = await expected(tested)
        reason = pb.FinishReason.Name(output.finished.reason)
        num_tokens = output.finished.usage.completion_tokens
        assert out == f"{output.text}\n{reason}: {len(PROMPT)} + {num_tokens} tokens\n"


def local(command: str, address: str) -> list[str]:
    """A command of README, for this server and a prompt that its tokenizer knows."""
    command = command.replace("The capital of France is", PROMPT)
    return shlex.split(command.replace("127.0.0.1:50051", address))


def test_readme_has_commands():
    assert len(COMMANDS) >= 4


@pytest.mark.parametrize("command", COMMANDS)
@in_loop
async def test_grpcurl_runs_what_readme_says(command):
    if shutil.which("grpcurl") is None:
        pytest.skip("needs grpcurl")
    async with served() as tested:
        out = await shown(local(command, f"127.0.0.1:{tested.server.grpc_port}"))
        if "GenerateStream" in command:
            assert '"finished"' in out


@pytest.mark.parametrize("command", [command for command in COMMANDS if " -d " in command])
@in_loop
async def test_whoever_has_only_reflection_can_do_what_readme_says(command):
    """What grpcurl does: the messages' forms are asked of the server."""
    async with served() as tested:
        address = f"127.0.0.1:{tested.server.grpc_port}"
        words = local(command, address)
        body, method = words[words.index("-d") + 1], words[-1]
        answers = await asyncio.to_thread(call_by_reflection, address, method, body)
        if "GenerateStream" in command:
            assert "finished" in answers[-1]
            assert "".join(a.get("delta", {}).get("text", "") for a in answers)
        else:
            assert len(answers) == 1


def call_by_reflection(address: str, method: str, body: str) -> list[dict]:
    with grpc.insecure_channel(address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        service, name = method.split("/")
        assert service in database.get_services()
        found = DescriptorPool(database).FindServiceByName(service).methods_by_name[name]
        request = json_format.Parse(body, message_factory.GetMessageClass(found.input_type)())
        read = message_factory.GetMessageClass(found.output_type).FromString
        kind = channel.unary_stream if found.server_streaming else channel.unary_unary
        call = kind(f"/{method}", type(request).SerializeToString, read, _registered_method=False)
        told = call(request, timeout=20)
        answers = list(told) if found.server_streaming else [told]
        return [json.loads(json_format.MessageToJson(each)) for each in answers]
