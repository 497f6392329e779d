"""A thousand streams at once, on one connection."""

import asyncio
import gc

import grpc

from serve.door import EventStream
from serve.proto import inference_pb2 as pb
from serve.proto import inference_pb2_grpc as pb_grpc
from serve.settings import ServeSettings
from tests.serve.house import in_loop, served

NUM_STREAMS, NUM_SLOTS = 1000, 32
ASKED = pb.GenerateRequest(
    token_ids=pb.TokenIds(ids=[3, 1, 4, 1, 5]), stopping=pb.Stopping(max_tokens=3, ignore_eos=True)
)


async def finished_of(stub) -> tuple[tuple[int, ...], pb.Finished]:
    tokens, ends = [], []
    async for event in stub.GenerateStream(ASKED):
        tokens += event.delta.token_ids
        if event.WhichOneof("event") == "finished":
            ends.append(event.finished)
    [finished] = ends
    return tuple(tokens), finished


@in_loop
async def test_a_thousand_streams_on_32_slots_all_end_in_the_order_of_their_arrival():
    limits = {"max_num_seqs": NUM_SLOTS, "max_num_batched_tokens": 512, "max_model_len": 64}
    settings = ServeSettings(grpc_port=0, max_connections=1)
    async with served(settings, **limits, num_pages=NUM_SLOTS * 4) as tested:
        address = f"127.0.0.1:{tested.server.grpc_port}"
        # Channels to the same address share a connection, and there is no other.
        channels = [grpc.aio.insecure_channel(address) for _ in range(4)]
        stubs = [pb_grpc.InferenceStub(channel) for channel in channels]
        crowd = (finished_of(stubs[number % 4]) for number in range(NUM_STREAMS))
        answers = await asyncio.gather(*crowd)
        for channel in channels:
            await channel.close()
        assert len({tokens for tokens, _ in answers}) == 1
        assert {end.reason for _, end in answers} == {pb.LENGTH}
        timings = sorted((end.timing for _, end in answers), key=lambda timing: timing.arrival)
        for early, late in zip(timings, timings[NUM_SLOTS:], strict=False):
            # Whoever came so much later has no slot before, so no token either.
            assert early.first_token <= late.first_token
        await tested.idle()
        gc.collect()
        assert not [thing for thing in gc.get_objects() if isinstance(thing, EventStream)]
        assert len(tested.server.frontend._door._ended) == NUM_STREAMS
