"""Clients of all sorts: polite ones, impatient ones, slow ones, and some that mean harm."""

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import grpc

from serve.proto import inference_pb2 as pb
from serve.proto import inference_pb2_grpc as pb_grpc
from serve.soak.record import Record

_GENERATE = "/jaxinfer.v1.Inference/Generate"
_NAN = float("nan")
#: Seconds after which a call is said to hang.
_PATIENCE = 120.0

#: Requests that are refused, and how.
BAD: tuple[tuple[pb.GenerateRequest, str], ...] = (
    (pb.GenerateRequest(), "INVALID_ARGUMENT"),
    (pb.GenerateRequest(token_ids=pb.TokenIds()), "INVALID_ARGUMENT"),
    (pb.GenerateRequest(token_ids=pb.TokenIds(ids=[2**32 - 1])), "INVALID_ARGUMENT"),
    (pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1] * 100_000)), "INVALID_ARGUMENT"),
    (pb.GenerateRequest(text="a " * 400_000), "INVALID_ARGUMENT"),
    (pb.GenerateRequest(text="a", model="another"), "NOT_FOUND"),
    (pb.GenerateRequest(text="a", sampling=pb.Sampling(temperature=_NAN)), "INVALID_ARGUMENT"),
    (pb.GenerateRequest(text="a", sampling=pb.Sampling(n=10**9)), "INVALID_ARGUMENT"),
    (pb.GenerateRequest(text="a", sampling=pb.Sampling(top_p=0)), "INVALID_ARGUMENT"),
    (pb.GenerateRequest(text="a", stopping=pb.Stopping(max_tokens=0)), "INVALID_ARGUMENT"),
    (pb.GenerateRequest(text="a", stopping=pb.Stopping(stop=["x"] * 10**5)), "INVALID_ARGUMENT"),
    (pb.GenerateRequest(text="a", output=pb.Output(logprobs=99)), "INVALID_ARGUMENT"),
)


@dataclass(frozen=True, kw_only=True)
class World:
    """What visitors visit.

    Attributes:
        vocab_size: ids to make prompts of.
        max_prompt: tokens of the longest prompt.
        has_faults: the device fails at times, so requests may end with ERROR.
    """

    stub: pb_grpc.InferenceStub
    channel: grpc.aio.Channel
    vocab_size: int
    max_prompt: int
    has_faults: bool


class Visitor:
    """Comes with one request after the other, each of another sort."""

    def __init__(self, world: World, record: Record, chance: random.Random):
        self._world, self._record, self._random = world, record, chance
        self._sorts: Mapping[Callable[[], Awaitable[str]], int] = {
            self.read_all: 8,
            self.ask_at_once: 3,
            self.leave_early: 3,
            self.abort: 2,
            self.hurry: 3,
            self.read_slowly: 2,
            self.ask_for_nonsense: 3,
            self.send_noise: 1,
            self.score: 1,
        }

    async def visit(self) -> None:
        """Once."""
        [sort] = self._random.choices(list(self._sorts), list(self._sorts.values()))
        name = getattr(sort, "__name__", "")
        try:
            async with asyncio.timeout(_PATIENCE):
                status = await sort()
        except TimeoutError:
            self._record.violation(f"{name}: no end after {_PATIENCE:g} s")
            status = "HANGS"
        self._record.calls[name, status] += 1

    async def read_all(self) -> str:
        """A stream, from its first event to its last."""
        request = self._request()
        return await self._read(request, self._world.stub.GenerateStream(request), {"OK"})

    async def read_slowly(self) -> str:
        """The same, with a nap now and then."""
        request = self._request()
        call = self._world.stub.GenerateStream(request)
        return await self._read(request, call, {"OK", "RESOURCE_EXHAUSTED"}, nap=0.3)

    async def hurry(self) -> str:
        """A stream with little time."""
        request = self._request()
        call = self._world.stub.GenerateStream(request, timeout=self._random.uniform(0.01, 1.5))
        return await self._read(request, call, {"OK", "DEADLINE_EXCEEDED"})

    async def abort(self) -> str:
        """A stream that another call ends."""
        request = self._request()
        call = self._world.stub.GenerateStream(request)
        await self._first(call)

        async def end() -> None:
            await asyncio.sleep(self._random.uniform(0, 1))
            await self._world.stub.Abort(pb.AbortRequest(request_id=request.request_id))

        ending = asyncio.ensure_future(end())
        status = await self._read(request, call, {"OK"}, has_begun=True)
        await asyncio.gather(ending, return_exceptions=True)
        return status

    async def leave_early(self) -> str:
        """A stream that is left in the middle, or before it began."""
        call = self._world.stub.GenerateStream(self._request())
        for _ in range(self._random.randint(0, 5)):
            await self._first(call)
        call.cancel()
        return "left"

    async def ask_at_once(self) -> str:
        """All outputs in one answer."""
        request = self._request()
        try:
            response = await self._world.stub.Generate(request)
        except grpc.aio.AioRpcError as error:
            return self._checked("ask_at_once", error, {"OK"})
        num_ends = Counter(output.finished.index for output in response.outputs)
        self._require_ends("ask_at_once", num_ends, request)
        return "OK"

    async def ask_for_nonsense(self) -> str:
        """What is to be refused."""
        request, expected = self._random.choice(BAD)
        try:
            await self._world.stub.Generate(request)
        except grpc.aio.AioRpcError as error:
            return self._checked("ask_for_nonsense", error, {expected})
        self._record.violation(f"nonsense was served: {str(request)[:200]}")
        return "OK"

    async def send_noise(self) -> str:
        """Bytes that are no message."""
        noise = b"\x12\xff" + self._random.randbytes(self._random.randint(0, 1000))
        try:
            await self._world.channel.unary_unary(_GENERATE)(noise)
        except grpc.aio.AioRpcError as error:
            return self._checked("send_noise", error, {"INTERNAL", "INVALID_ARGUMENT"})
        return "OK"

    async def score(self) -> str:
        """How likely random tokens are."""
        request = pb.ScoreRequest(token_ids=pb.TokenIds(ids=self._ids(2, 60)))
        try:
            response = await self._world.stub.Score(request)
        except grpc.aio.AioRpcError as error:
            return self._checked("score", error, {"OK", "FAILED_PRECONDITION"})
        same = list(response.token_ids) == list(request.token_ids.ids)[1:]
        self._record.require(same, "a score is of other tokens")
        return "OK"

    async def _first(self, call: grpc.aio.UnaryStreamCall) -> None:
        try:
            await call.read()
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            if (task := asyncio.current_task()) and task.cancelling():
                raise

    async def _read(
        self,
        request: pb.GenerateRequest,
        call: grpc.aio.UnaryStreamCall,
        statuses: set[str],
        *,
        nap: float = 0.0,
        has_begun: bool = False,
    ) -> str:
        """Reads a stream to its end, and looks at the order of its events."""
        num_ends: Counter[int] = Counter()
        try:
            while (event := await call.read()) is not grpc.aio.EOF:
                kind = event.WhichOneof("event")
                self._record.require(has_begun or kind == "prompt", f"{kind} came first")
                has_begun = True
                if kind == "finished":
                    num_ends[event.finished.index] += 1
                elif kind == "delta":
                    self._record.num_tokens += len(event.delta.token_ids)
                    self._record.require(
                        not num_ends[event.delta.index], "a delta after its output's end"
                    )
                if nap:
                    await asyncio.sleep(self._random.uniform(0, nap))
        except grpc.aio.AioRpcError as error:
            self._record.require(
                all(count == 1 for count in num_ends.values()), f"ends: {dict(num_ends)}"
            )
            return self._checked("stream", error, statuses)
        self._require_ends("stream", num_ends, request)
        return "OK"

    def _require_ends(
        self, what: str, ends: Mapping[int, int], request: pb.GenerateRequest
    ) -> None:
        expected = dict.fromkeys(range(request.sampling.n), 1)
        self._record.require(dict(ends) == expected, f"{what}: ends {dict(ends)} of {expected}")

    def _checked(self, what: str, error: grpc.aio.AioRpcError, allowed: set[str]) -> str:
        status = error.code().name
        # A full queue may always be, and where the device fails some of it is seen.
        also = {"RESOURCE_EXHAUSTED"} | ({"INTERNAL"} if self._world.has_faults else set())
        words = f"{what}: {status} ({error.details()}), allowed are {sorted(allowed)}"
        self._record.require(status in allowed | also, words)
        return status

    def _ids(self, least: int, most: int) -> Sequence[int]:
        most = min(most, self._world.max_prompt)
        return [
            self._random.randrange(1, self._world.vocab_size)
            for _ in range(self._random.randint(least, most))
        ]

    def _request(self) -> pb.GenerateRequest:
        """Something that can be served."""
        chance = self._random
        request = pb.GenerateRequest(
            request_id=uuid.UUID(int=chance.getrandbits(128)).hex,
            token_ids=pb.TokenIds(ids=self._ids(1, chance.choice([8, 60, 400]))),
            sampling=pb.Sampling(n=chance.choice([1, 1, 1, 2, 4])),
            stopping=pb.Stopping(
                max_tokens=chance.choice([1, 8, 40]), ignore_eos=chance.random() < 0.5
            ),
            priority=chance.choice([0, 0, 0, 1, -1]),
            cache=pb.Cache(bypass=chance.random() < 0.2, salt=chance.choice(["", "", "s"])),
        )
        sampling, stopping = request.sampling, request.stopping
        if chance.random() < 0.5:
            sampling.temperature = chance.choice([0.0, -0.0, 1e-45, 0.7, 5.0, 3e38])
        if chance.random() < 0.3:
            sampling.top_p = chance.choice([1e-45, 0.1, 0.9, 1.0])
            sampling.top_k = chance.choice([0, 1, 40, 2**32 - 1])
        if chance.random() < 0.2:
            sampling.repetition_penalty = chance.choice([1e-45, 1.3, 3e38])
            sampling.frequency_penalty = chance.choice([-2.0, 2.0])
        if chance.random() < 0.2:
            sampling.logit_bias[1] = -100.0
        if chance.random() < 0.3:
            stopping.stop.extend(chance.sample([" the", "e", "\n", "é", "zzz"], 2))
        if chance.random() < 0.2:
            request.output.logprobs = chance.choice([0, 5])
        return request
