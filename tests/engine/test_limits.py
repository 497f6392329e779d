"""What is refused before anything is allocated for it, and with which figures."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxinfer.engine.limits import CacheGroup, EngineLimits, pool_capacity
from jaxinfer.errors import (
    CapacityError,
    DuplicateRequest,
    EngineClosed,
    InvalidParameter,
    InvalidPrompt,
    PromptTooLong,
)
from jaxinfer.sampling_params import RequestLimits
from tests.engine.house import VOCAB, House, full_group, window_group


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "the prompt is empty"),
        ([1, -1], r"prompt_token_ids\[1\] = -1 .* from 0 to 11"),
        ([VOCAB], r"prompt_token_ids\[0\] = 12"),
        ([2**31], "2147483648"),
        ([2**32 - 1], "4294967295"),
        ([1.0], "1.0"),
        ([True], "True"),
        (["1"], "'1'"),
        ([[1]], r"\[1\]"),
        ([[1], [2, 3]], r"\[1\]"),
        ([1, None], "None"),
    ],
)
def test_a_prompt_that_is_no_list_of_token_ids_is_refused(prompt, message):
    house = House()
    with pytest.raises(InvalidPrompt, match=message):
        house.submit("r", prompt)
    house.assert_idle()


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"priority": "high"}, "priority = 'high' .* an integer, higher is sooner; use 0"),
        ({"priority": math.nan}, "priority = nan"),
        ({"priority": 1.0}, "priority = 1.0"),
        ({"priority": True}, "priority = True"),
        ({"priority": None}, "priority = None"),
        ({"deadline": math.nan}, "deadline = nan .* a finite number of seconds .* use None"),
        ({"deadline": -math.inf}, "deadline = -inf"),
        ({"deadline": "5"}, "deadline = '5'"),
        ({"deadline": False}, "deadline = False"),
        ({"deadline": 1j}, "deadline = 1j"),
        ({"deadline": 10**400}, "the deadline does not fit a float: .* use None"),
        ({"deadline": 10**5000}, "the deadline does not fit a float"),
    ],
)
def test_a_priority_or_deadline_that_is_none_is_refused_and_hurts_nobody(schedule, message):
    house = House(max_num_seqs=1)
    house.submit("runs", [1], max_tokens=9, ignore_eos=True)
    house.step()
    house.submit("waits", [1, 2], max_tokens=4, priority=1, deadline=1e6)
    with pytest.raises(InvalidParameter, match=message):
        house.submit("bad", [1], **schedule)
    house.run()
    house.assert_as_expected("runs")
    house.assert_as_expected("waits")
    assert "bad" not in house.events
    house.assert_idle()


@pytest.mark.parametrize(
    "deadline",
    [None, math.inf, 1.7e308, 10**300, np.float32(1e6), np.float64(np.inf), Fraction(10**9, 7)],
)
def test_a_deadline_that_never_comes_changes_nothing(deadline):
    house = House(decode_steps=(1, 4))
    house.submit("r", [1], max_tokens=30, ignore_eos=True, deadline=deadline)
    house.submit("other", [2], max_tokens=30, ignore_eos=True, priority=np.uint8(1))
    while house.step():
        house.now += 1e-3
    house.assert_as_expected("r")
    house.assert_as_expected("other")
    house.assert_idle()


def test_a_priority_of_any_integer_type_puts_the_higher_one_first():
    house = House(max_num_seqs=1)
    for name, priority in (("low", np.uint8(1)), ("least", -(10**30)), ("high", np.int8(2))):
        house.submit(name, [1], max_tokens=2, ignore_eos=True, priority=priority)
    house.run()
    assert list(house.events) == ["high", "low", "least"]


@pytest.mark.parametrize(
    "prompt", [(1, 2), np.array([1, 2]), np.array([1, 2], np.uint8), range(1, 3)]
)
def test_any_sequence_of_integers_is_a_prompt(prompt):
    house = House()
    house.submit("r", prompt, max_tokens=2)
    house.run()
    house.assert_as_expected("r")


def test_sampling_parameters_are_verified_against_the_model():
    house = House()
    with pytest.raises(InvalidParameter, match="stop_token_ids = 12"):
        house.submit("r", [1], stop_token_ids=[VOCAB])
    with pytest.raises(InvalidParameter, match="temperature = nan"):
        house.submit("r", [1], temperature=float("nan"))
    house.assert_idle()


def test_prompt_logprobs_are_bounded_by_the_prompts_length():
    house = House(request=RequestLimits(max_prompt_logprobs_bytes=2**12))
    with pytest.raises(InvalidParameter, match="prompt_logprobs = 2 of 40 prompt tokens"):
        house.submit("r", [1] * 40, prompt_logprobs=2)
    house.assert_idle()
    house.submit("r", [1] * 3, prompt_logprobs=2)
    house.run()
    house.assert_as_expected("r")


def test_a_prompt_must_leave_room_for_one_token_in_the_context():
    house = House(max_model_len=8)
    with pytest.raises(PromptTooLong, match="8 tokens: at most 7"):
        house.submit("r", [1] * 8)
    house.submit("r", [1] * 7, ignore_eos=True)
    house.run()
    assert len(house.output("r").tokens) == 1


def test_a_prompt_must_fit_into_the_page_pool():
    house = House((full_group(num_pages=4),))
    with pytest.raises(PromptTooLong, match="13 tokens: the page pool holds 12"):
        house.submit("r", [1] * 13)
    house.submit("r", [1] * 12, max_tokens=1)
    house.run()
    house.assert_as_expected("r")


def test_a_request_that_could_never_fit_is_refused_with_figures():
    house = House((full_group(num_pages=4),))
    with pytest.raises(InvalidParameter, match=r"needs 13 .* holds 12; ask for at most 8,"):
        house.submit("r", [1] * 5, max_tokens=9)
    house.submit("r", [1] * 5, max_tokens=8, ignore_eos=True)
    house.run()
    house.assert_as_expected("r")


@pytest.mark.parametrize("num_pages", [4, 64])
def test_max_tokens_none_goes_on_until_context_or_pool_are_full(num_pages):
    house = House((full_group(num_pages),))
    house.submit("r", [1] * 5, max_tokens=None, ignore_eos=True)
    house.run()
    assert len(house.output("r").tokens) == min(64, 4 * (num_pages - 1) + 1) - 5


def test_max_tokens_is_clipped_to_the_context():
    house = House()
    house.submit("r", [1] * 60, max_tokens=2**32 - 1, ignore_eos=True)
    house.run()
    assert len(house.output("r").tokens) == 4


def test_an_id_is_free_again_when_its_request_is_over():
    house = House()
    house.submit("r", [1], max_tokens=2)
    with pytest.raises(DuplicateRequest, match="'r' is in use"):
        house.submit("r", [2], max_tokens=2)
    house.run()
    house.events.clear()
    house.submit("r", [2], max_tokens=2)
    house.run()
    house.assert_as_expected("r")


def test_a_closed_engine_takes_nothing_in():
    house = House()
    house.engine.close()
    house.engine.close()
    with pytest.raises(EngineClosed, match="'r'"):
        house.submit("r", [1])


def test_the_queue_is_bounded_in_requests_and_in_tokens():
    house = House(max_waiting_requests=2, max_waiting_tokens=10)
    house.submit("a", [1] * 4)
    with pytest.raises(CapacityError, match="11 prompt tokens would wait, at most 10"):
        house.submit("b", [1] * 7)
    house.submit("b", [1] * 6)
    with pytest.raises(CapacityError, match="3 requests would wait, at most 2"):
        house.submit("c", [1])
    house.step()
    house.submit("c", [1])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_model_len", 1),
        ("max_num_seqs", 0),
        ("max_num_batched_tokens", 7),
        ("page_size", 0),
        ("decode_steps", ()),
        ("decode_steps", (2,)),
        ("decode_steps", (1, 4, 2)),
    ],
)
def test_limits_that_no_engine_can_keep_are_refused(field, value):
    with pytest.raises(InvalidParameter, match=field):
        EngineLimits(**{"max_model_len": 64, "vocab_size": 8, field: value})


def test_groups_that_no_cache_can_have_are_refused():
    with pytest.raises(InvalidParameter, match="window"):
        CacheGroup(kind="full", window=4, num_pages=8)
    with pytest.raises(InvalidParameter, match="num_pages = 1"):
        full_group(num_pages=1)


@given(window=st.none() | st.integers(1, 20), num_pages=st.integers(2, 9), size=st.integers(1, 5))
def test_a_pools_capacity_is_the_most_that_one_sequence_can_grow_to(window, num_pages, size):
    group = full_group(num_pages) if window is None else window_group(window, num_pages)
    capacity = pool_capacity([group], size)
    if capacity is None:
        assert group.pages_for(10_000, size) <= num_pages - 1
    else:
        assert (
            group.pages_for(capacity, size) <= num_pages - 1 < group.pages_for(capacity + 1, size)
        )


@given(window=st.integers(1, 20), end=st.integers(1, 60), size=st.integers(1, 5))
def test_pages_for_a_window_are_those_that_its_worst_position_touches(window, end, size):
    touched = [
        {position // size for position in range(max(0, last + 1 - window), last + 1)}
        for last in range(end)
    ]
    # Window borders meet page borders in the worst way only in a sequence that is long enough.
    most = max(map(len, touched))
    assert most <= window_group(window).pages_for(end, size) <= most + 1
