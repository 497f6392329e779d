"""Lines of requests into lines of results."""

import asyncio
import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxinfer.errors import EngineClosed, JaxInferError, StepFailed
from serve.batch.lines import BadLine, Line
from serve.batch.results import OK, answered, refused
from serve.batch.sink import Results
from serve.batch.source import Source
from serve.errors import Aborted
from serve.frontend import Frontend
from serve.openai import OpenAiAsk, answer, error_body, read_body

_log = logging.getLogger(__name__)

#: Bytes of the lines of all requests under way; a single one may be longer.
MAX_BYTES_UNDER_WAY = 64 * 2**20
#: Seconds between two writes that outlive a power cut.
SYNC_SECONDS = 2.0
#: Seconds for the engine to let go of what is aborted; a step that has begun is waited for.
ABORT_SECONDS = 30.0


@dataclass
class Progress:
    """What a run has done so far.

    Attributes:
        num_failed: of the ``num_done``, those whose result is an error.
    """

    num_done: int = 0
    num_failed: int = 0
    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0


class Run:
    """Asks for what has no result yet, and writes results in the order in which they come.

    Attributes:
        progress: of this run.
        failure: why it has ended before its time, if it was not told to: OSError (a result could
            not be written) or EngineClosed.
    """

    def __init__(
        self,
        frontend: Frontend,
        source: Source,
        results: Results,
        *,
        max_sequences: int,
        on_progress: Callable[[], None] = lambda: None,
    ):
        """
        Args:
            max_sequences: outputs under way at a time. Twice as many as the engine has slots keep
                these filled.
        """
        self.progress = Progress()
        self.failure: Exception | None = None
        self._frontend, self._source, self._results = frontend, source, results
        self._limits = frontend.model.request_limits
        self._max_sequences = max_sequences
        self._on_progress = on_progress
        self._under_way: set[asyncio.Task[None]] = set()
        self._num_sequences = self._num_bytes = 0
        self._doubtful: list[tuple[Line, StepFailed, str]] = []
        self._changed = asyncio.Event()
        self._is_stopped = False
        self._is_over = asyncio.Event()

    async def run(self) -> None:
        """Returns when each line has a result, or when it was stopped; see ``failure``."""
        syncing = asyncio.ensure_future(self._sync_now_and_then())
        try:
            for line in self._source:
                # Thousands may be done; who wants to stop is heard all the same.
                await asyncio.sleep(0)
                if self._is_stopped:
                    break
                if line.key not in self._results.done:
                    await self._take(line)
            while self._under_way and not self._is_stopped:
                await self._wait_for_change()
            if not self._is_stopped:
                self._write_doubtful()
        finally:
            await self._end_requests()
            self._is_over.set()
            await syncing

    def stop(self) -> None:
        """Aborts what is under way: the next run will ask for it again."""
        self._is_stopped = True
        self._changed.set()

    async def _take(self, line: Line | BadLine) -> None:
        """Hands a line in when there is room, or writes why that cannot be."""
        if isinstance(line, BadLine):
            self._write(line, refused(line), is_ok=False)
            return
        # The engine knows a request by an id of our own: those of two lines may be the same.
        body = {name: value for name, value in line.body.items() if name != "request_id"}
        try:
            ask = read_body(line.url, body, max_prompts=self._limits.max_prompts)
        except Exception as error:
            self._write_error(line, error)
            return
        num_sequences = len(ask.asks) * ask.n
        while not self._is_stopped and self._is_full(num_sequences, line.num_bytes):
            await self._wait_for_change()
        if not self._is_stopped:
            self._begin(line, ask, num_sequences)

    def _is_full(self, num_sequences: int, num_bytes: int) -> bool:
        if not self._under_way:
            return False
        return (
            self._num_sequences + num_sequences > self._max_sequences
            or self._num_bytes + num_bytes > MAX_BYTES_UNDER_WAY
        )

    def _begin(self, line: Line, ask: OpenAiAsk, num_sequences: int) -> None:
        def end(task: asyncio.Task[None]) -> None:
            self._under_way.remove(task)
            self._num_sequences -= num_sequences
            self._num_bytes -= line.num_bytes
            self._changed.set()

        self._num_sequences += num_sequences
        self._num_bytes += line.num_bytes
        task = asyncio.ensure_future(self._answer(line, ask))
        self._under_way.add(task)
        task.add_done_callback(end)

    async def _answer(self, line: Line, ask: OpenAiAsk) -> None:
        try:
            body = await answer(self._frontend, ask)
        except (EngineClosed, Aborted) as error:
            self._fail(error)
        except StepFailed as error:
            if self._frontend.model.engine.is_closed:  # that was no fault of this request
                self._fail(error)
            else:  # nor need it be, if this is how the engine's end begins
                self._doubtful.append((line, error, ask.id))
        except Exception as error:
            self._write_error(line, error, request_id=ask.id)
        else:
            usage = body["usage"]
            self.progress.num_prompt_tokens += usage["prompt_tokens"]
            self.progress.num_completion_tokens += usage["completion_tokens"]
            raw = _answered(line, OK, body, ask.id)
            self._write(line, raw, is_ok=True)
            self._write_doubtful()

    def _write_doubtful(self) -> None:
        """The engine lives: what has failed, has failed."""
        doubtful, self._doubtful = self._doubtful, []
        for line, error, request_id in doubtful:
            self._write_error(line, error, request_id=request_id)

    def _write_error(self, line: Line, error: Exception, request_id: str | None = None) -> None:
        status, body, _ = error_body(error)
        if not isinstance(error, JaxInferError):  # its message is not told
            _log.error("custom_id %.100r failed", line.custom_id, exc_info=error)
        request_id = request_id or uuid.uuid4().hex
        raw = _answered(line, status, body, request_id)
        self._write(line, raw, is_ok=False)

    def _write(self, line: Line | BadLine, raw: bytes, *, is_ok: bool) -> None:
        if self.failure is not None:  # a disk that was full would take a shorter line, perhaps
            return
        try:
            self._results.append(raw)
        except OSError as error:
            self._fail(error)
            return
        self._results.done.add(line.key)
        self._results.num_failed += not is_ok
        self.progress.num_done += 1
        self.progress.num_failed += not is_ok
        self._on_progress()

    def _fail(self, error: Exception) -> None:
        if self.failure is None:
            self.failure = error
        self.stop()

    async def _wait_for_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def _end_requests(self) -> None:
        """Leaves nothing in the engine that would yet call into this event loop."""
        tasks = tuple(self._under_way)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        deadline = asyncio.get_running_loop().time() + ABORT_SECONDS
        while self._frontend.num_unfinished and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)

    async def _sync_now_and_then(self) -> None:
        """In a thread: a disk may take its time, and the engine need not wait for it."""
        while True:
            is_over = self._is_over.is_set()
            try:
                await asyncio.to_thread(self._results.sync)
            except OSError as error:
                self._fail(error)
            if is_over:
                return
            try:
                async with asyncio.timeout(SYNC_SECONDS):
                    await self._is_over.wait()
            except TimeoutError:
                pass


def _answered(line: Line, status: int, body: Mapping[str, Any], request_id: str) -> bytes:
    return answered(
        line.custom_id, status=status, body=body, request_id=request_id, digest=line.digest
    )
