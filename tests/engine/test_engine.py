"""The engine on a model that can be worked out by hand: outputs, ends, failures."""

import random

import pytest

from jaxinfer.errors import EngineClosed, StepFailed
from jaxinfer.outputs import FinishReason
from tests.engine.house import House, full_group, window_group

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
GROUPS = {
    "full": (full_group(),),
    "window": (window_group(6),),
    "both": (full_group(), window_group(6)),
    "three": (full_group(), window_group(9), window_group(1)),
}


@pytest.mark.parametrize("lookahead", [True, False], ids=["ahead", "plain"])
@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
def test_outputs_equal_the_plain_loop(groups, lookahead):
    house = House(groups, lookahead=lookahead, decode_steps=(1, 4))
    for number in range(9):
        prompt = PROMPT[: number + 1] * 2
        house.submit(f"r{number}", prompt, max_tokens=20, ignore_eos=bool(number % 2))
    house.run()
    for number in range(9):
        house.assert_as_expected(f"r{number}")
    house.assert_idle()


@pytest.mark.parametrize("seed", range(40))
def test_a_crowd_in_a_small_pool_gets_what_each_would_get_alone(seed):
    chance = random.Random(seed)
    house = House(
        chance.choice([(full_group(9),), (full_group(9), window_group(6, 7))]),
        lookahead=chance.random() < 0.7,
        decode_steps=chance.choice([(1,), (1, 3)]),
        max_model_len=32,
        max_num_seqs=chance.randint(1, 4),
        max_num_batched_tokens=chance.randint(4, 16),
    )
    stems = ([], [1, 2, 3, 4, 5, 6, 7, 8, 9], [6] * 14, [9] * 4 + [6] * 9)
    for number in range(10):
        house.submit(
            f"r{number}",
            chance.choice(stems) + chance.choices(range(1, 12), k=chance.randint(1, 9)),
            n=chance.choice([1, 1, 1, 3]),
            max_tokens=chance.randint(1, 9),
            priority=chance.choice([0, 0, 0, 1]),
            stop=chance.choice([(), (), ("ab",), ("c", "bd")]),
            bad_words=chance.choice([(), (), ("ab", "c"), ("de", "fa")]),
            ignore_eos=chance.random() < 0.5,
            **chance.choice([{}, {}, {"logprobs": 2}, {"prompt_logprobs": 1}]),
        )
        for _ in range(chance.choice([0, 0, 1, 4, 9])):
            house.step()
    house.run()
    for number in range(10):
        house.assert_as_expected(f"r{number}")
    house.assert_idle()


def test_the_next_step_is_launched_before_the_one_before_is_read():
    order = []
    for lookahead in (True, False):
        house = House(lookahead=lookahead)
        launch, read = house.runner.launch, house.runner.read
        house.runner.launch = lambda plan, launch=launch: order.append("launch") or launch(plan)
        house.runner.read = lambda pending, read=read: order.append("read") or read(pending)
        house.submit("r", [1], max_tokens=3, ignore_eos=True)
        house.run()
    ahead, plain = order[:6], order[6:]
    assert ahead == ["launch", "launch", "read", "launch", "read", "read"]
    assert plain == ["launch", "read"] * 3


@pytest.mark.parametrize("bad_words", [(), ("lll",)])
def test_sampling_waits_for_the_token_in_flight_only_where_the_next_one_depends_on_it(bad_words):
    house, order = House(), []
    for name in ("launch", "sample", "read"):
        call = getattr(house.runner, name)
        setattr(house.runner, name, lambda *a, name=name, call=call: order.append(name) or call(*a))
    house.submit("a", [1], max_tokens=3, ignore_eos=True)
    house.submit("b", [2], max_tokens=3, ignore_eos=True, bad_words=bad_words)
    house.run()
    ahead = ["launch", "read", "sample"] if bad_words else ["launch", "sample", "read"]
    assert order == ["launch", "sample", *ahead, *ahead, "read"]


@pytest.mark.parametrize("lookahead", [True, False])
def test_who_watches_bad_words_takes_no_more_steps_than_its_neighbours(lookahead):
    house = House(lookahead=lookahead, max_num_batched_tokens=32)
    for name, bad_words in (("a", ()), ("b", ("ab", "lk")), ("c", ("jjj",))):
        house.submit(name, [3, 1], max_tokens=9, ignore_eos=True, bad_words=bad_words)
    house.run()
    assert len(house.runner.plans) == 9
    for name in "abc":
        house.assert_as_expected(name)


def test_the_events_of_a_step_come_in_one_call():
    house, calls = House(), []
    receive = house.receive
    house.receive = lambda events: (calls.append(len(events)), receive(events))
    for name in "abc":
        house.submit(name, [1, 2], max_tokens=2, ignore_eos=True)
    house.run()
    assert calls == [3, 3]


def test_metrics_say_when_things_happened():
    house = House(max_num_batched_tokens=4)
    house.now = 10.0
    house.submit("r", [1] * 6, max_tokens=3, ignore_eos=True)
    while house.engine.num_unfinished:
        house.now += 1
        house.step()
    metrics = house.events["r"][-1].metrics
    assert metrics.arrival_time == 10
    assert metrics.first_scheduled_time == 11
    assert metrics.first_token_time == 13
    assert metrics.last_token_time == metrics.finished_time == 15
    assert all(event.metrics is None for event in house.events["r"][:-1])


@pytest.mark.parametrize("num_prompt_tokens", [1, 2, 9, 20])
def test_prompt_logprobs_cover_the_whole_prompt_in_chunks(num_prompt_tokens):
    house = House(max_num_batched_tokens=4)
    house.submit("first", [1] * num_prompt_tokens, max_tokens=1)
    house.run()
    house.submit("r", [1] * num_prompt_tokens, n=2, prompt_logprobs=2, logprobs=0, max_tokens=3)
    house.run()
    house.assert_as_expected("r")
    [shown] = [e.prompt_logprobs for e in house.events["r"] if e.prompt_logprobs is not None]
    assert len(shown) == num_prompt_tokens
    assert shown[0] is None


def test_the_page_usage_is_that_of_the_fullest_group():
    house = House((full_group(11), window_group(4, num_pages=5)))
    house.submit("r", [1] * 8, max_tokens=4)
    house.step()
    assert house.engine.page_usage == 0.5
    assert (house.engine.num_running, house.engine.num_waiting) == (1, 0)
    house.run()
    assert house.engine.page_usage == 0


# Ends that somebody else decides.


def ends(house, request_id):
    """How each output of a request ended."""
    found = {}
    for event in house.events[request_id]:
        if event.finish_reason:
            found[event.index] = event.finish_reason
    return found


@pytest.mark.parametrize("num_steps", range(9))
def test_an_abort_at_any_moment_ends_every_output_once(num_steps):
    house = House(max_num_seqs=2, max_num_batched_tokens=4)
    house.submit("r", PROMPT, n=3, max_tokens=30, ignore_eos=True)
    house.submit("other", PROMPT, max_tokens=3)
    for _ in range(num_steps):
        house.step()
    assert house.engine.abort("r")
    assert house.engine.abort("r")
    house.step()
    assert ends(house, "r") == dict.fromkeys(range(3), FinishReason.ABORT)
    assert not house.engine.abort("r")
    house.run()
    house.assert_as_expected("other")
    house.assert_idle()


def test_an_abort_of_nobody_changes_nothing():
    assert not House().engine.abort("nobody")


def test_an_abort_does_not_hit_a_later_request_of_the_same_id():
    house = House()
    house.submit("r", [1], max_tokens=1)
    house.step()
    house.engine.abort("r")
    house.engine.abort("r")
    house.step()
    house.events.clear()
    house.submit("r", [2], max_tokens=3)
    house.run()
    house.assert_as_expected("r")


def test_an_aborted_output_shows_the_text_it_held_back():
    house = House()
    house.submit("r", [1] * 4, max_tokens=9, ignore_eos=True)
    house.run()
    tokens = house.output("r").tokens
    stop = "".join(chr(97 + token) for token in tokens[:4]) + "!"
    house.submit("s", [1] * 4, max_tokens=9, ignore_eos=True, stop=stop)
    for _ in range(4):
        house.step()
    assert house.output("s").text == ""
    house.engine.abort("s")
    house.run()
    output = house.output("s")
    assert output.text == stop[: len(output.tokens)] != ""


def test_a_deadline_ends_what_runs_and_what_waits():
    house = House(max_num_seqs=1)
    house.submit("runs", [1], max_tokens=50, ignore_eos=True, deadline=5.0)
    house.submit("waits", [1], max_tokens=50, deadline=5.0)
    house.submit("past", [1], deadline=-1.0)
    for now in range(7):
        house.now = float(now)
        house.step()
    for name in ("runs", "waits", "past"):
        assert ends(house, name) == {0: FinishReason.DEADLINE}
    assert len(house.output("runs").tokens) == 4
    assert house.events["past"][0].metrics.finished_time == 0
    house.run()
    house.assert_idle()


def test_closing_ends_everything_with_abort():
    house = House(max_num_seqs=1)
    house.submit("runs", [1], n=2, max_tokens=50, ignore_eos=True)
    house.step()
    house.submit("new", [1])
    house.engine.close()
    assert ends(house, "runs") == dict.fromkeys(range(2), FinishReason.ABORT)
    assert ends(house, "new") == {0: FinishReason.ABORT}
    house.assert_idle()
    house.engine.close()


def test_closing_from_within_a_callback_keeps_the_order_of_events():
    house = House()
    receive = house.receive

    def close_first(events):
        house.engine.close()
        receive(events)

    house.receive = close_first
    house.submit("a", [1], max_tokens=9, ignore_eos=True)
    house.submit("b", [1], max_tokens=9, ignore_eos=True)
    house.run()
    for name in "ab":
        assert ends(house, name) == {0: FinishReason.ABORT}
        assert len(house.output(name).tokens) == 1


def test_a_callback_that_fails_ends_its_own_requests_only(caplog):
    house = House()
    receive, calls = house.receive, []

    def fail(events):
        calls.append(events)
        raise RuntimeError("a reader's own mistake")

    house.receive = fail
    house.submit("bad", [1], max_tokens=9, ignore_eos=True)
    house.receive = receive
    house.submit("good", [1], max_tokens=9)
    house.run()
    assert [event.finish_reason for events in calls for event in events] == [None, "abort"]
    assert "on_events failed" in caplog.text
    house.assert_as_expected("good")
    house.assert_idle()


# Failures of one request.


def break_stream(house, request_id, *names):
    """From now on these methods of the first output's stream raise."""

    def fail(*_, **__):
        raise ValueError("not a text")

    [job] = [job for job in house.engine._inbox.jobs() if job.request.request_id == request_id]
    for name in names:
        setattr(job._streams[0], name, fail)


@pytest.mark.parametrize("broken", [["push"], ["push", "flush"]])
@pytest.mark.parametrize("lookahead", [True, False], ids=["ahead", "plain"])
def test_a_request_whose_tokens_make_no_event_ends_alone(broken, lookahead, caplog):
    house = House(lookahead=lookahead)
    house.submit("bad", [1], n=3, max_tokens=9, ignore_eos=True)
    house.submit("good", [1], max_tokens=9)
    for _ in range(4):
        house.step()
    break_stream(house, "bad", *broken)
    house.run()
    assert ends(house, "bad") == dict.fromkeys(range(3), FinishReason.ERROR)
    assert "not a text" in house.events["bad"][-1].error
    assert "request 'bad' failed" in caplog.text
    house.assert_as_expected("good")
    house.assert_idle()


def test_a_dying_engine_tells_everybody_though_one_stream_fails():
    house = House()
    for name in "abc":
        house.submit(name, [1], max_tokens=9, ignore_eos=True)
    house.step()
    break_stream(house, "b", "flush")

    def fail(*_):
        raise ZeroDivisionError

    house.scheduler.plan = fail
    with pytest.raises(ZeroDivisionError):
        house.step()
    for name in "abc":
        assert ends(house, name) == {0: FinishReason.ERROR}
    assert house.engine.num_unfinished == 0


# Failures of the device.


def fail_next(house, where, error):
    """The runner's next launch or read raises this; those after it are well again."""
    healthy = getattr(house.runner, where)

    def fail(*_):
        setattr(house.runner, where, healthy)
        raise error

    setattr(house.runner, where, fail)


@pytest.mark.parametrize("where", ["launch", "sample", "read"])
@pytest.mark.parametrize("lookahead", [True, False], ids=["ahead", "plain"])
@pytest.mark.parametrize(
    "error",
    [StepFailed("lost"), ValueError("lost"), KeyError("lost"), OSError("lost")],
    ids=lambda error: type(error).__name__,
)
def test_after_a_failed_step_everybody_goes_on_with_the_tokens_they_have(where, lookahead, error):
    house = House(GROUPS["both"], lookahead=lookahead, max_num_seqs=2, decode_steps=(1, 4))
    house.submit("a", PROMPT, max_tokens=9, ignore_eos=True, logprobs=2, prompt_logprobs=1)
    house.submit("b", PROMPT, n=2, max_tokens=9, ignore_eos=True, bad_words=("ab", "c"))
    house.submit("waits", PROMPT, max_tokens=9)
    for _ in range(4):
        house.step()
    fail_next(house, where, error)
    house.step()
    assert house.runner.num_resets == 1
    house.submit("later", PROMPT, max_tokens=9)
    house.run()
    for name in house.requests:
        house.assert_as_expected(name)
    assert house.stats.num_failed_steps == 1
    house.assert_idle()


@pytest.mark.parametrize("where", ["launch", "sample", "read"])
def test_a_device_that_finishes_no_step_any_more_closes_the_engine(where):
    house = House()
    house.submit("a", PROMPT, max_tokens=9)
    house.run()

    def fail(*_):
        raise RuntimeError("gone for good")

    setattr(house.runner, where, fail)

    names = [f"r{number}" for number in range(3)]
    for name in names:
        house.submit(name, PROMPT, max_tokens=9)
    with pytest.raises(StepFailed, match="gone for good"):
        house.run(max_steps=20)
    for name in names:
        assert ends(house, name) == {0: FinishReason.ERROR}
    assert house.runner.num_resets == 5  # two of all, two of one alone, a proof
    assert house.engine.num_unfinished == 0
    with pytest.raises(EngineClosed):
        house.submit("late", PROMPT)


@pytest.mark.parametrize("where", ["launch", "sample", "read"])
@pytest.mark.parametrize("error", [AssertionError, MemoryError, SystemExit])
def test_what_no_new_cache_would_mend_closes_the_engine(where, error):
    house = House()
    house.submit("a", PROMPT, max_tokens=9, ignore_eos=True)
    house.step()
    fail_next(house, where, error("broken"))
    with pytest.raises(error):
        house.step()
    assert ends(house, "a") == {0: FinishReason.ERROR}
    assert house.runner.num_resets == 0
    assert not house.engine.step()


def test_a_device_that_cannot_be_reset_closes_the_engine():
    house = House()

    def cannot():
        raise StepFailed("the device is gone")

    house.runner.reset = cannot
    house.submit("a", [1], max_tokens=9, ignore_eos=True)
    house.step()
    house.submit("b", [1], max_tokens=9)
    house.runner.fail_on = "read"
    with pytest.raises(StepFailed, match="the device is gone"):
        house.step()
    assert ends(house, "a") == {0: FinishReason.ERROR}
    assert ends(house, "b") == {0: FinishReason.ERROR}
    assert house.engine.num_unfinished == 0
    assert not house.engine.step()
    house.engine.close()
