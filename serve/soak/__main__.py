"""``python -m serve.soak``: a long time under all sorts of traffic, and figures at the end."""

import argparse
import asyncio
import json
import random
import sys
import time

from serve.model import ServedModel
from serve.server import Server
from serve.settings import ServeSettings
from serve.soak.record import Record
from serve.soak.run import SoakSettings, soak
from serve.soak.trouble import Trouble

_DESCRIPTION = (
    "Visits a server with all sorts of clients at once, while its device fails at times, and looks "
    "whether canaries keep their tokens and everything is as at the start afterwards. The last "
    "line is JSON; exits with 1 when something happened that should not."
)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line's soak and returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m serve.soak", description=_DESCRIPTION)
    parser.add_argument("--minutes", type=float, default=10.0, help="default: %(default)s")
    parser.add_argument("--model", default="smollm2-135m", help="default: %(default)s")
    parser.add_argument("--target", help="HOST:PORT of a server to visit, in place of a model here")
    parser.add_argument("--visitors", type=int, default=24, help="default: %(default)s")
    parser.add_argument(
        "--fault-interval", type=float, default=10.0, help="seconds (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    args = parser.parse_args(argv)
    settings = SoakSettings(
        seconds=60 * args.minutes,
        num_visitors=args.visitors,
        fault_interval=args.fault_interval,
        seed=args.seed,
    )
    record, begin = Record(), time.monotonic()
    if args.target is not None:
        asyncio.run(soak(args.target, settings, record=record, note=_note))
    else:
        asyncio.run(_soak_here(args.model, settings, record))
    print(json.dumps(record.summary(time.monotonic() - begin)))
    return 1 if record.num_violations else 0


async def _soak_here(model: str, settings: SoakSettings, record: Record) -> None:
    """On a server in this process, whose device fails."""
    from jaxinfer.llm import LLM

    with LLM(model, max_waiting_requests=1024) as llm:
        _note(str(llm.budget))
        trouble = Trouble(llm.engine, record, random.Random(settings.seed))
        llm.engine.start()
        server = Server(ServedModel.of(llm, model), ServeSettings(grpc_port=0))
        await server.start()
        address = f"127.0.0.1:{server.grpc_port}"
        await soak(address, settings, record=record, trouble=trouble, note=_note)
        await server.drain()
        record.require(not server.has_failed, "the server has failed")


def _note(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
