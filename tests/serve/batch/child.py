"""The command on a model that can be worked out by hand, in a process that can be killed.

    python -m tests.serve.batch.child IN OUT [flags]

It writes a byte to standard output after each result. With ``DIE_AT=n,b`` in the environment it
kills itself while it writes result n, when b bytes of that are written; with ``STOP_AT=n,s`` it
sends itself the signal s after result n.
"""

import os
import signal
import sys
from typing import NoReturn

from jaxinfer.cli import batch, main
from serve.batch import ledger
from serve.model import ServedModel
from tests.serve.batch.house import FakeLLM


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("alive")


def dying_writes(number: int, num_bytes: int):
    write, count = os.pwrite, 0

    def pwrite(fd: int, raw: bytes, offset: int) -> int:
        nonlocal count
        count += 1
        if count < number:
            return write(fd, raw, offset)
        write(fd, raw[:num_bytes], offset)
        die()

    return pwrite


def announced(append, stop_at: int, signum: int):
    count = 0

    def announce(self: ledger.Ledger, raw: bytes) -> None:
        nonlocal count
        append(self, raw)
        os.write(1, b".")
        count += 1
        if count == stop_at:
            os.kill(os.getpid(), signum)

    return announce


if __name__ == "__main__":
    batch.load_llm = lambda **settings: FakeLLM()
    ServedModel.of = lambda llm, name: llm.model
    ledger.Ledger.append = announced(
        ledger.Ledger.append, *map(int, os.environ.get("STOP_AT", "0,0").split(","))
    )
    if "DIE_AT" in os.environ:
        ledger.os.pwrite = dying_writes(*map(int, os.environ["DIE_AT"].split(",")))
    sys.exit(main(["batch", *sys.argv[1:]]))
