"""Streams whose readers are slow, or gone."""

import asyncio
import time

import pytest

from jaxinfer.engine import Request
from jaxinfer.errors import DuplicateRequest
from jaxinfer.outputs import FinishReason
from jaxinfer.sampling_params import SamplingParams
from serve.door import Door
from serve.errors import SlowReader
from tests.engine.house import House
from tests.serve.house import in_loop


def asked(num_tokens: int, **params) -> Request:
    params = SamplingParams(max_tokens=num_tokens, ignore_eos=True, temperature=0, **params)
    return Request(request_id="r", prompt_token_ids=[1, 2], params=params)


class Record(list):
    """Of all events of a request, read or not."""

    def note(self, event, now) -> None:
        self.append(event)


def tokens_of(events, index: int) -> list[int]:
    return [token for event in events if event.index == index for token in event.token_ids]


def run_to_the_end(house: House) -> None:
    """Every step there is, while nobody reads."""
    while house.engine.step():
        pass


@in_loop
async def test_what_a_slow_reader_missed_comes_as_one_event_an_output():
    house = House(clock=time.monotonic)
    door = Door(house.engine, max_pending_tokens=64)
    stream = door.submit(asked(10, n=2, logprobs=1))
    run_to_the_end(house)
    [batch] = [batch async for batch in stream]
    assert sorted(event.index for event in batch) == [0, 1]
    for event in batch:
        assert event.finish_reason is FinishReason.LENGTH
        assert len(event.text) == len(event.token_ids) == len(event.logprobs) == 10
    assert door.abort("r")  # it has ended
    assert len(door) == 0


@in_loop
async def test_a_reader_that_is_too_slow_sees_the_end_of_its_request_and_the_pages_are_free():
    house = House(clock=time.monotonic)
    door = Door(house.engine, max_pending_tokens=5)
    stream = door.submit(asked(40))
    while house.engine.step():
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    [[event]] = [batch async for batch in stream]
    assert (event.token_ids, event.finish_reason) == ((), FinishReason.ERROR)
    assert isinstance(event.failure, SlowReader)
    assert "more than 5 tokens of request 'r'" in str(event.failure)
    house.assert_idle()
    assert len(door) == 0


@in_loop
async def test_a_slow_reader_sees_one_end_of_each_output_and_no_gap_before_it():
    house = House(clock=time.monotonic)
    door = Door(house.engine, max_pending_tokens=12)
    all_events = Record()
    stream = door.submit(asked(60, n=3, seed=1, stop_token_ids=[4]), [all_events])
    batches, seen = stream.batches(), []

    async def read_to_the_first_end() -> None:
        while not any(event.finish_reason for event in seen):
            seen.extend(await anext(batches))

    reader = asyncio.create_task(read_to_the_first_end())
    while house.engine.step():
        for _ in range(3):  # the events cross, the reader wakes, the reader reads
            await asyncio.sleep(0)
    await reader
    missed = [event for batch in [batch async for batch in batches] for event in batch]
    ends = {event.index: event.finish_reason for event in seen + missed if event.finish_reason}
    assert [event.finish_reason for event in missed] == [FinishReason.ERROR] * len(missed)
    assert sorted(ends) == [0, 1, 2]
    assert len(missed) == 3 - sum(event.finish_reason is not None for event in seen) >= 1
    for index in range(3):  # nothing that it has seen came after something that it has not
        tokens, came = tokens_of(seen, index), tokens_of(all_events, index)
        assert tokens == came[: len(tokens)]
    house.assert_idle()


@in_loop
async def test_a_patient_reader_is_woken_for_ends_and_before_too_much_waits():
    house = House(clock=time.monotonic, max_num_seqs=2)
    door = Door(house.engine, max_pending_tokens=64)
    stream = door.submit(asked(40, n=2, seed=1, logprobs=1))
    batches = []

    async def read() -> None:
        async for batch in stream.batches(24):
            batches.append(batch)

    reader = asyncio.create_task(read())
    while house.engine.step():
        await asyncio.sleep(0)
    await reader
    for index in range(2):
        events = [event for batch in batches for event in batch if event.index == index]
        assert sum(len(event.token_ids) for event in events) == 40
        assert [event.finish_reason for event in events[:-1]] == [None] * (len(events) - 1)
        assert events[-1].finish_reason is FinishReason.LENGTH
    # Both ends, and whenever more than 24 of 2 * 40 tokens and 2 * 40 * 2 log-probabilities wait.
    assert len(batches) <= 2 + 2 * 40 * 3 // 24
    house.assert_idle()


@in_loop
async def test_patience_does_not_make_a_reader_too_slow():
    house = House(clock=time.monotonic)
    door = Door(house.engine, max_pending_tokens=8)
    stream = door.submit(asked(40))
    reader = asyncio.create_task(anext(stream.batches(1000)))
    batch = None
    while house.engine.step():
        await asyncio.sleep(0)
        if reader.done():
            batch = batch or reader.result()
            stream.close()
    assert batch is not None
    [event] = batch
    assert 4 < len(event.token_ids) <= 8
    house.assert_idle()


@pytest.mark.parametrize("reason", [FinishReason.ABORT, FinishReason.DEADLINE])
@in_loop
async def test_a_patient_reader_hears_of_an_end_without_the_engine(reason):
    house = House(clock=time.monotonic)
    door = Door(house.engine, max_pending_tokens=64)
    stream = door.submit(asked(40))
    reader = asyncio.create_task(anext(stream.batches(32)))
    house.engine.step()
    await asyncio.sleep(0)
    assert not reader.done()
    if reason is FinishReason.ABORT:
        door.end_all(reason)
    else:
        stream.end(reason)
    [event] = await reader
    assert event.finish_reason is reason
    stream.close()
    run_to_the_end(house)
    await asyncio.sleep(0)


@in_loop
async def test_a_closed_stream_ends_its_request():
    house = House(clock=time.monotonic)
    door = Door(house.engine, max_pending_tokens=64)
    stream = door.submit(asked(40))
    house.engine.step()
    stream.close()
    run_to_the_end(house)
    await asyncio.sleep(0)
    house.assert_idle()
    assert len(door) == 0
    assert house.stats.num_generated_tokens < 40


@in_loop
async def test_an_id_is_in_use_until_its_last_event_was_delivered():
    house = House(clock=time.monotonic)
    door = Door(house.engine, max_pending_tokens=64)
    first = door.submit(asked(3))
    run_to_the_end(house)  # the engine has forgotten it, and its events are on their way
    assert door.abort("r")
    with pytest.raises(DuplicateRequest, match="'r' is in use"):
        door.submit(asked(5))
    [batch] = [batch async for batch in first]
    assert len(batch[0].token_ids) == 3
    second = door.submit(asked(5))
    run_to_the_end(house)
    [batch] = [batch async for batch in second]
    assert len(batch[0].token_ids) == 5
