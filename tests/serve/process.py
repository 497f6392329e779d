"""``jaxinfer serve`` on the model that can be worked out by hand: a process to fail, and to kill.

    python -m tests.serve.process FAULT [flags of jaxinfer serve]

FAULT happens when a prompt begins with token 11.
"""

import sys
import time
from types import SimpleNamespace

import jaxinfer.cli.serve as command
from jaxinfer.cli.__main__ import run
from serve import server
from serve.model import ServedModel
from tests.engine.house import House, full_group
from tests.serve.house import LONG, ChattyTokenizer


def _books(house: House) -> None:
    house.scheduler.slots._free.append(0)


def _device(house: House) -> None:
    house.runner.launch = _failing(RuntimeError("the device is gone"))


def _memory(house: House) -> None:
    raise MemoryError


def _exit(house: House) -> None:
    raise SystemExit(0)


def _hang(house: House) -> None:
    server._ABORT_SECONDS = 0.5
    time.sleep(3600)


def _nothing(house: House) -> None:
    """All goes well."""


FAULTS = {
    "books": _books,
    "device": _device,
    "memory": _memory,
    "exit": _exit,
    "hang": _hang,
    "none": _nothing,
}


def _failing(error: Exception):
    def fail(_):
        raise error

    return fail


def _llm(fault) -> SimpleNamespace:
    house = House((full_group(64 * LONG),), clock=time.monotonic, max_model_len=LONG)
    house.engine._loop.debug_checks = fault is _books
    launch = house.runner.launch

    def trapped(plan):
        pending = launch(plan)
        if any(admission.prompt[0] == 11 for admission in plan.admissions):
            fault(house)
        return pending

    house.runner.launch = trapped
    return SimpleNamespace(
        engine=house.engine, startup_seconds={}, budget="no budget", shutdown=house.engine.close
    )


def _model(llm: SimpleNamespace, name: str) -> ServedModel:
    return ServedModel(
        name=name, engine=llm.engine, tokenizer=ChattyTokenizer(), max_model_len=LONG
    )


if __name__ == "__main__":
    _, name, *flags = sys.argv
    ServedModel.of = _model
    command.load_llm = lambda **_: _llm(FAULTS[name])
    sys.argv = ["jaxinfer", "serve", "--grpc-port=0", "--http-port=0", "--json", *flags]
    run()
