"""Requests whose tokens must stay what they were, whoever else is there."""

import asyncio

import grpc

from serve.proto import inference_pb2 as pb
from serve.proto import inference_pb2_grpc as pb_grpc
from serve.soak.record import Record

#: Repeats what a model goes on with surely: the tokens must not depend on the last bit of a logit,
#: because prompts are computed by other programs when others are there.
_PROMPTS = (
    "1 2 3 4 5 6 7 8 9 10 11 12 13 14",
    "a b c d e f g h a b c d e f g h a b c d e f g h a b c",
    "one, two, three, one, two, three, one, two, three, one, two, three,",
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday Monday Tuesday Wednesday",
    "red green blue red green blue red green blue red green blue red green",
    "abcabcabcabcabcabcabcabcabcabcabcabc",
    "The cat sat. The cat sat. The cat sat. The cat sat. The cat sat. The cat",
    "yes no yes no yes no yes no yes no yes no yes no",
)
_NUM_TOKENS = 16
#: Tries of a canary while the device fails under it.
_MAX_TRIES = 5


class Canaries:
    """Greedy requests, with the tokens that they had when nobody else was there."""

    def __init__(self, stub: pb_grpc.InferenceStub, record: Record, *, min_gap: float):
        """``min_gap``: between a token's log-probability and the next best one's."""
        self._stub, self._record, self._min_gap = stub, record, min_gap
        self._expected: list[tuple[pb.GenerateRequest, list[int]]] = []

    def __len__(self) -> int:
        return len(self._expected)

    async def settle(self) -> None:
        """Asks for each prompt; those whose tokens are sure are canaries from now on."""
        for text in _PROMPTS:
            for bypass in (False, True):
                request = pb.GenerateRequest(
                    text=text,
                    sampling=pb.Sampling(temperature=0),
                    stopping=pb.Stopping(max_tokens=_NUM_TOKENS, ignore_eos=True),
                    output=pb.Output(logprobs=2),
                    cache=pb.Cache(bypass=bypass),
                )
                [output] = (await self._stub.Generate(request)).outputs
                if min(map(_gap, output.logprobs)) >= self._min_gap:
                    self._expected.append((request, list(output.token_ids)))
        self._record.require(bool(self._expected), "no prompt whose tokens are sure")

    async def check(self) -> bool:
        """Whether all have the tokens that they had."""
        return all(await asyncio.gather(*(self._check(*pair) for pair in self._expected)))

    async def _check(self, request: pb.GenerateRequest, expected: list[int]) -> bool:
        for _ in range(_MAX_TRIES):
            try:
                [output] = (await self._stub.Generate(request, timeout=120)).outputs
            except grpc.aio.AioRpcError as error:
                if error.code() in (
                    grpc.StatusCode.INTERNAL,
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                ):
                    await asyncio.sleep(0.2)
                    continue
                self._record.violation(f"a canary got {error.code().name}: {error.details()}")
                return False
            got = list(output.token_ids)
            self._record.require(got == expected, f"a canary of {request.text!r} is {got}")
            self._record.num_canaries += got == expected
            return got == expected
        return False


def _gap(position: pb.PositionLogprobs) -> float:
    """How much more likely the token is than any other."""
    token, *others = position.entries
    others = [entry for entry in others if entry.token_id != token.token_id]
    return token.logprob - max((entry.logprob for entry in others), default=-1e30)
