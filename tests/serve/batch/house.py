"""Files of requests and results, and an engine whose model can be worked out by hand."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from serve.batch.ledger import Ledger
from serve.batch.run import Run
from serve.batch.source import Contents, Source
from serve.frontend import Frontend
from serve.model import ServedModel
from tests.engine.house import House, full_group, text_of
from tests.serve.house import ChattyTokenizer

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MAX_LEN = 64


def line(custom_id: object, url: str = COMPLETIONS, method: str = "POST", **body: object) -> dict:
    """A line of requests; greedy, of eight tokens, unless the body says otherwise."""
    prompt = (
        {"messages": [{"role": "user", "content": "abc"}]} if url == CHAT else {"prompt": "abc"}
    )
    body = prompt | {"temperature": 0, "max_tokens": 8, "ignore_eos": True} | body
    return {"custom_id": custom_id, "method": method, "url": url, "body": body}


def requests(num: int) -> list[dict]:
    """Requests of which no two have the same prompt, of both kinds."""
    prompts = [text_of([n // 144 % 12, n // 12 % 12, n % 12]) for n in range(num)]
    return [
        line(f"request-{n}", CHAT, messages=[{"role": "user", "content": prompt}])
        if n % 3 == 0
        else line(f"request-{n}", prompt=prompt, max_tokens=1 + n % 12)
        for n, prompt in enumerate(prompts)
    ]


def write_lines(path: Path, entries: list[object]) -> Path:
    """Bytes are lines as they are."""
    raws = [e if isinstance(e, bytes) else json.dumps(e).encode() for e in entries]
    path.write_bytes(b"".join(raw + b"\n" for raw in raws))
    return path


def read_lines(path: Path) -> list[dict]:
    """The results in a file, all of whose lines are whole."""
    raw = path.read_bytes()
    assert raw == b"" or raw.endswith(b"\n")
    return [json.loads(each) for each in raw.splitlines()]


def timeless(result: dict) -> dict:
    """A result without what differs between two runs of the same."""
    result = {name: value for name, value in result.items() if name != "id"}
    if result["response"] is not None:
        body = result["response"]["body"]
        body = {name: value for name, value in body.items() if name not in ("id", "created")}
        usage = body.get("usage", {})
        usage = {name: usage[name] for name in usage if name != "prompt_tokens_details"}
        result["response"] = result["response"] | {
            "request_id": "",
            "body": body | {"usage": usage},
        }
    return result


def by_id(results: list[dict]) -> dict[str, dict]:
    """Results by custom_id, of which none is there twice."""
    found = {result["custom_id"]: timeless(result) for result in results}
    assert len(found) == len(results)
    return found


class FakeLLM:
    """As much of an ``LLM`` as a batch needs."""

    budget = "memory: none"

    def __init__(self, **limits):
        limits = {"max_model_len": MAX_LEN} | limits
        self.house = House((full_group(),), clock=time.monotonic, **limits)
        self.engine = self.house.engine
        self.model = ServedModel(
            name="tiny",
            engine=self.engine,
            tokenizer=ChattyTokenizer(),
            max_model_len=limits["max_model_len"],
        )

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.engine.close()


@contextmanager
def engine(**limits) -> Iterator[FakeLLM]:
    """One that runs; afterwards its pages and slots are back, unless it has ended itself."""
    with FakeLLM(**limits) as llm:
        llm.engine.start()
        yield llm
        if llm.engine.is_closed:
            return
    llm.house.scheduler.check()
    assert llm.engine.num_running == llm.engine.num_waiting == llm.engine.num_unfinished == 0
    assert llm.engine.page_usage == 0.0


def run_batch(
    llm: FakeLLM,
    inputs: Path,
    outputs: Path,
    *,
    on_progress: Callable[[Run], None] = lambda run: None,
    max_sequences: int = 8,
    **flags,
) -> Run:
    """What the command does, without its words. ``on_progress`` may stop the run."""
    with Source.open(str(inputs)) as source, Ledger(str(outputs), **flags) as ledger:
        ledger.read(Contents.of(source), source.name)
        ledger.begin()

        async def going() -> Run:
            frontend = Frontend(llm.model, max_pending_tokens=2**16)
            run = Run(
                frontend,
                source,
                ledger,
                max_sequences=max_sequences,
                on_progress=lambda: on_progress(run),
            )
            await run.run()
            assert frontend.num_unfinished == 0
            return run

        return asyncio.run(going())
