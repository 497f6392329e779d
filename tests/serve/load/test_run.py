"""How a load is sent, in a time that passes only where somebody waits for it."""

import asyncio

import pytest

from serve.load.measure import LoadSettings, measure
from serve.load.prompts import Turn
from serve.load.run import Reply, run_load


class HandLoop(asyncio.SelectorEventLoop):
    """Its clock stands while anything can be done, and then jumps to what is next."""

    now = 0.0

    def time(self):
        return self.now

    def _run_once(self):
        if not self._ready and self._scheduled:
            self.now = max(self.now, self._scheduled[0].when())
        super()._run_once()


def by_hand(coroutine):
    """Runs it on such a loop."""
    with asyncio.Runner(loop_factory=HandLoop) as runner:
        return runner.run(coroutine)


def clock():
    return asyncio.get_running_loop().time()


class Server:
    """Takes a second to the first token and a quarter for each later one; tokens are numbers."""

    def __init__(self, *, tells_ids=True, fails=()):
        self.tells_ids, self.fails = tells_ids, set(fails)
        self.prompts, self.num_running, self.most = [], 0, 0

    async def send(self, prompt, output_len):
        self.prompts.append(prompt)
        number = len(self.prompts)
        self.num_running += 1
        self.most = max(self.most, self.num_running)
        try:
            await asyncio.sleep(1)
            if number in self.fails:
                raise ConnectionError("gone")
            arrivals = [clock()]
            for _ in range(output_len - 1):
                await asyncio.sleep(0.25)
                arrivals.append(clock())
            return Reply(
                arrivals=tuple(arrivals),
                prompt_tokens=len(prompt),
                output_tokens=output_len,
                token_ids=tuple(range(100, 100 + output_len)) if self.tells_ids else None,
            )
        finally:
            self.num_running -= 1


def conversations(num, output_len=3):
    return [(Turn(prompt=(number,), output_len=output_len),) for number in range(num)]


@pytest.mark.parametrize("most", [1, 3, 8])
def test_a_closed_loop_keeps_its_concurrency_and_never_exceeds_it(most):
    server = Server()
    timelines = by_hand(run_load(server, conversations(12), max_concurrency=most, clock=clock))
    assert server.most == most
    assert len(timelines) == 12
    assert max(entry.ended for entry in timelines) == 1.5 * -(-12 // most)
    assert {entry.due for entry in timelines} == {None}


def test_an_open_loop_sends_by_the_clock_whatever_has_ended():
    server = Server()
    due = [0.0, 0.125, 0.25, 5.0]
    timelines = by_hand(run_load(server, conversations(4), due=due, clock=clock))
    assert [entry.due for entry in timelines] == due
    assert [entry.sent for entry in timelines] == due
    assert server.most == 3
    assert timelines[3].arrivals == (6.0, 6.25, 6.5)
    assert [entry.times.ttft for entry in timelines] == [1000] * 4


def test_where_an_open_loop_has_no_room_it_is_late_and_says_so():
    timelines = by_hand(
        run_load(Server(), conversations(2), due=[0.0, 0.5], max_concurrency=1, clock=clock)
    )
    assert timelines[1].due == 0.5
    assert timelines[1].sent == 1.5
    assert timelines[1].times.ttft == 1000  # from when it was sent


def test_what_fails_is_counted_and_the_run_goes_on():
    server = Server(fails=[1, 3])
    told = []
    timelines = by_hand(
        run_load(server, conversations(5), max_concurrency=1, clock=clock, on_end=told.append)
    )
    assert [entry.error for entry in timelines] == [
        "ConnectionError: gone",
        None,
        "ConnectionError: gone",
        None,
        None,
    ]
    assert told == timelines


def test_an_answer_without_tokens_has_failed():
    class Mute:
        async def send(self, prompt, output_len):
            return Reply(arrivals=(), prompt_tokens=1, output_tokens=0)

    [timeline] = by_hand(run_load(Mute(), conversations(1), clock=clock))
    assert timeline.error == "ValueError: no token came"


@pytest.mark.parametrize(("tells_ids", "answer"), [(True, (100, 101)), (False, (7, 8))])
def test_a_turn_goes_after_what_was_said_and_answered(tells_ids, answer):
    server = Server(tells_ids=tells_ids)
    turns = tuple(Turn(prompt=(n, n), output_len=2, stand_in=(7, 8)) for n in (1, 2, 3))
    timelines = by_hand(run_load(server, [turns], due=[0.0], clock=clock))
    assert server.prompts == [
        (1, 1),
        (1, 1, *answer, 2, 2),
        (1, 1, *answer, 2, 2, *answer, 3, 3),
    ]
    assert (
        [entry.sent for entry in timelines] == [entry.due for entry in timelines] == [0, 1.25, 2.5]
    )


def test_a_conversation_ends_with_the_turn_that_failed():
    server = Server(fails=[2])
    turns = tuple(Turn(prompt=(n,), output_len=2) for n in (1, 2, 3))
    timelines = by_hand(run_load(server, [turns], clock=clock))
    assert [entry.error is None for entry in timelines] == [True, False]


def test_warm_ups_do_not_count_and_the_settings_are_told():
    server = Server()
    settings = LoadSettings(rate=4.0, burstiness=2.0, objectives={"ttft": 1e9})

    async def measured():
        return await measure(server, conversations(5), settings, warmups=conversations(3))

    figures = by_hand(measured())
    assert len(server.prompts) == 8
    assert figures["completed"] == 5
    assert figures["total_output_tokens"] == 15
    assert (figures["request_rate"], figures["burstiness"]) == (4.0, 2.0)
    assert figures["client_cpu_seconds"] > 0
    closed = by_hand(measure(server, conversations(2), LoadSettings(max_concurrency=1)))
    assert (closed["request_rate"], closed["max_concurrency"]) == ("inf", 1)
