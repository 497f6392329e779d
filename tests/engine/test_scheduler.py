"""The policy: who gets tokens, slots and pages of a step."""

import pytest

from tests.engine.house import House, full_group, window_group


def shapes(plan):
    """(start, tokens) of each row; decode rows have None."""
    return [(row.start, None if row.is_decode else row.num_tokens) for row in plan.rows]


def test_decode_rows_come_first_and_prompts_fill_the_budget():
    house = House(max_num_batched_tokens=6)
    house.submit("a", [1] * 4, max_tokens=9, ignore_eos=True)
    house.step()
    house.submit("b", [2] * 9, max_tokens=2)
    house.submit("c", [3] * 4, max_tokens=2)
    for _ in range(3):
        house.step()
    assert [shapes(plan) for plan in house.runner.plans] == [
        [(0, 4)],
        [(4, None), (0, 5)],
        [(5, None), (0, 1), (5, 4)],
        [(6, None), (9, None), (1, 3)],
    ]


def test_who_ends_with_the_step_in_flight_takes_no_token_of_the_budget():
    house = House(max_num_batched_tokens=6)
    house.submit("a", [1] * 3, max_tokens=1)
    house.submit("b", [2] * 3, max_tokens=1)
    house.submit("c", [3] * 6, max_tokens=1)
    house.run()
    assert [shapes(plan) for plan in house.runner.plans] == [[(0, 3), (0, 3)], [(0, 6)]]


def test_rows_are_ordered_by_zone_and_only_last_chunks_sample():
    house = House(max_num_batched_tokens=6)
    house.submit("a", [1] * 9, max_tokens=2)
    house.submit("b", [2] * 2, max_tokens=2)
    house.run()
    first, second, *_ = house.runner.plans
    assert [row.samples for row in first.rows] == [False]
    assert shapes(second) == [(0, 2), (6, 3)]
    assert [row.samples for row in second.rows] == [True, True]


def test_nothing_is_planned_beyond_max_tokens():
    house = House()
    house.submit("a", [1] * 3, max_tokens=4, ignore_eos=True)
    house.run()
    assert house.stats.num_steps == 4
    assert house.stats.num_dropped_rows == 0


def test_a_sequence_that_ends_early_costs_at_most_one_more_row():
    house = House()
    house.submit("a", [1] * 3, max_tokens=50, stop_token_ids=list(range(12)))
    house.run()
    assert len(house.output("a").tokens) == 1
    assert house.stats.num_steps == 2
    assert house.stats.num_dropped_rows == 1


# Pages.


def test_the_youngest_is_preempted_and_computes_its_own_tokens_again():
    house = House((full_group(num_pages=6),))
    house.submit("old", [1] * 6, max_tokens=12, ignore_eos=True)
    house.submit("young", [2] * 6, max_tokens=12, ignore_eos=True)
    house.run()
    admissions = [admission for plan in house.runner.plans for admission in plan.admissions]
    old, young, again = admissions
    assert house.stats.num_preemptions == 1
    assert len(again.generated) > 0
    assert again.sampling is young.sampling is not old.sampling
    assert again.generation > young.generation
    for name in ("old", "young"):
        house.assert_as_expected(name)
    house.assert_idle()


def test_the_oldest_is_never_preempted():
    house = House((full_group(num_pages=9), window_group(5, num_pages=6)))
    for number in range(8):
        house.submit(f"r{number}", [number + 1] * 5, max_tokens=24, ignore_eos=True)
    house.run()
    admissions = [a.prompt[0] for plan in house.runner.plans for a in plan.admissions]
    assert house.stats.num_preemptions > 0
    assert admissions.count(1) == 1
    for number in range(8):
        house.assert_as_expected(f"r{number}")


def test_who_ends_with_the_step_in_flight_is_not_preempted():
    house = House((full_group(num_pages=5),), max_num_batched_tokens=32, page_size=4)
    house.submit("old", [1] * 8, max_tokens=8, ignore_eos=True)
    house.submit("young", [2] * 7, max_tokens=1)
    house.run()
    assert house.stats.num_preemptions == 0
    house.assert_as_expected("old")
    house.assert_as_expected("young")


def test_a_prompt_waits_until_all_its_pages_are_there():
    house = House((full_group(num_pages=7),))
    house.submit("a", [1] * 14, max_tokens=6, ignore_eos=True)
    house.submit("b", [2] * 12, max_tokens=1)
    house.run()
    assert house.stats.num_preemptions == 0
    [late] = [i for i, plan in enumerate(house.runner.plans) for a in plan.admissions if i]
    assert late >= 6


def test_a_window_group_gives_back_what_fell_out_of_the_window():
    house = House((full_group(17), window_group(6, num_pages=6)), max_num_batched_tokens=4)
    house.submit("a", [1] * 40, max_tokens=20, ignore_eos=True)
    house.run()
    house.assert_as_expected("a")
    full, window = house.stats.used_pages_peak
    assert full == 15
    assert window <= 5


def test_pages_given_back_without_a_step_are_cleared_in_the_next_one():
    house = House((full_group(12), window_group(3, num_pages=4), window_group(1, num_pages=3)))
    for number in range(4):
        house.submit(f"r{number}", [number + 1] * 9, max_tokens=9, ignore_eos=True)
    house.run()
    for number in range(4):
        house.assert_as_expected(f"r{number}")


# Several steps a call.


def test_several_decode_steps_a_call_when_nobody_waits():
    house = House(decode_steps=(1, 2, 4))
    house.submit("a", [1] * 3, max_tokens=12, ignore_eos=True)
    house.run()
    assert [plan.num_steps for plan in house.runner.plans] == [1, 4, 4, 2, 1]
    house.assert_as_expected("a")


@pytest.mark.parametrize("params", [{"stop": "jkjkjk"}, {"bad_words": ["jkjkjk"]}])
def test_one_step_a_call_while_the_host_watches_the_tokens(params):
    house = House(decode_steps=(1, 4))
    house.submit("a", [1] * 3, max_tokens=12, ignore_eos=True, **params)
    house.run()
    assert {plan.num_steps for plan in house.runner.plans} == {1}


def test_bad_words_of_a_single_token_neither_slow_a_slot_nor_come_with_its_steps():
    house = House(decode_steps=(1, 4))
    house.submit("a", [1] * 3, max_tokens=12, ignore_eos=True, bad_words=["a", "c", "j"])
    house.run()
    assert 4 in {plan.num_steps for plan in house.runner.plans}
    assert not any(house.runner.allowed)
    house.assert_as_expected("a")
    assert not {0, 2, 9} & set(house.output("a").tokens)


def test_one_step_a_call_while_somebody_waits():
    house = House(decode_steps=(1, 4), max_num_seqs=1)
    house.submit("a", [1] * 3, max_tokens=8, ignore_eos=True)
    house.submit("b", [1] * 3, max_tokens=8, ignore_eos=True)
    house.run()
    assert [plan.num_steps for plan in house.runner.plans] == [1] * 8 + [1, 4, 1, 1, 1]


def test_one_step_a_call_when_the_pages_are_few():
    house = House((full_group(num_pages=4),), decode_steps=(1, 8))
    house.submit("a", [1] * 3, max_tokens=9, ignore_eos=True)
    house.submit("b", [1] * 3, max_tokens=9, ignore_eos=True)
    house.run()
    assert 1 in {plan.num_steps for plan in house.runner.plans[1:]}
    house.assert_as_expected("a")
    house.assert_as_expected("b")


def test_one_step_a_call_when_a_deadline_is_near():
    house = House(decode_steps=(1, 4), max_model_len=256)
    house.submit("a", [1] * 3, max_tokens=200, ignore_eos=True, deadline=20.0)
    for _ in range(20):
        house.now += 1
        house.step()
    steps = [plan.num_steps for plan in house.runner.plans]
    assert 4 in steps
    assert steps[-1] == 1


# Priorities.


def test_a_higher_priority_is_served_first():
    house = House(max_num_seqs=1)
    for name, priority in (("low", 0), ("high", 2), ("middle", 1)):
        house.submit(name, [1] * 3, max_tokens=3, priority=priority)
    house.run()
    assert list(house.events) == ["high", "middle", "low"]


def test_a_higher_priority_takes_the_place_of_a_lower_one():
    house = House(max_num_seqs=1)
    house.submit("low", [1] * 3, max_tokens=9, ignore_eos=True)
    for _ in range(4):
        house.step()
    house.submit("high", [2] * 3, max_tokens=3, priority=1)
    house.run()
    assert house.stats.num_preemptions == 1
    finished = [name for name in house.events if house.events[name][-1].finish_reason]
    assert house.events["high"][-1].metrics.finished_time is not None
    assert set(finished) == {"low", "high"}
    house.assert_as_expected("low")
    house.assert_as_expected("high")


def test_equal_priorities_do_not_take_places_from_each_other():
    house = House(max_num_seqs=1)
    for number in range(3):
        house.submit(f"r{number}", [1] * 3, max_tokens=4, priority=5)
    house.run()
    assert house.stats.num_preemptions == 0
    assert list(house.events) == ["r0", "r1", "r2"]


# Shared beginnings.


def test_samples_of_one_prompt_compute_it_once():
    house = House()
    house.submit("a", [1] * 10, n=4, max_tokens=5, ignore_eos=True)
    house.run()
    assert house.stats.num_forks == 3
    assert house.stats.num_copied_pages == 3
    assert house.stats.num_computed_tokens == 10 + 3 + 4 * 4
    house.assert_as_expected("a")
    house.assert_idle()


def test_a_page_that_holds_only_the_last_prompt_token_is_not_copied():
    house = House(enable_prefix_caching=False)
    house.submit("a", [1] * 9, n=3, max_tokens=2, ignore_eos=True)
    house.run()
    assert house.stats.num_forks == 2
    assert house.stats.num_copied_pages == 0
    house.assert_as_expected("a")


def test_more_samples_than_slots_take_over_from_whoever_is_there():
    house = House((full_group(), window_group(6)), max_num_seqs=2, enable_prefix_caching=False)
    house.submit("a", [1] * 11, n=5, max_tokens=4, ignore_eos=True)
    house.run()
    assert house.stats.num_forks >= 1
    house.assert_as_expected("a")
    house.assert_idle()


@pytest.mark.parametrize("caching", [True, False])
def test_one_slot_never_copies_a_page(caching):
    groups = (full_group(9), window_group(6, num_pages=7))
    house = House(groups, max_num_seqs=1, enable_prefix_caching=caching)
    for number, length in enumerate([11, 8, 5, 11]):
        house.submit(
            f"r{number}", [1] * length, n=3, max_tokens=6, ignore_eos=True, priority=number % 2
        )
        house.step()
    house.run()
    assert not any(plan.copies for plan in house.runner.plans)
    assert house.stats.num_preemptions > 0
    for number in range(4):
        house.assert_as_expected(f"r{number}")
    house.assert_idle()


def test_a_second_prompt_with_the_same_beginning_computes_only_the_rest():
    house = House()
    house.submit("a", [1] * 11, max_tokens=1)
    house.run()
    computed = house.stats.num_computed_tokens
    house.submit("b", [1] * 11, max_tokens=1)
    house.run()
    assert house.stats.num_computed_tokens - computed == 3
    assert house.events["a"][-1].num_cached_tokens == 0
    assert house.events["b"][-1].num_cached_tokens == 8
    assert house.stats.prefix_hit_tokens == 8
    assert house.stats.prefix_query_tokens == 22
    house.assert_as_expected("b")


def test_a_hit_leaves_at_least_one_token_to_compute():
    house = House()
    for name in ("a", "b"):
        house.submit(name, [1] * 8, max_tokens=1)
        house.run()
    assert house.events["b"][-1].num_cached_tokens == 4


def test_generated_tokens_are_found_by_the_next_turn():
    house = House()
    house.submit("a", [1] * 6, max_tokens=7, ignore_eos=True)
    house.run()
    turn = [1] * 6 + house.output("a").tokens
    house.submit("b", [*turn, 5], max_tokens=3)
    house.run()
    assert house.events["b"][-1].num_cached_tokens == 12
    house.assert_as_expected("b")


@pytest.mark.parametrize(
    "fields", [{"cache_salt": "mine"}, {"bypass_prefix_cache": True}, {"prompt_logprobs": 0}]
)
def test_a_request_of_its_own_salt_or_without_cache_finds_nothing(fields):
    house = House()
    house.submit("a", [1] * 11, max_tokens=1)
    house.run()
    house.submit("b", [1] * 11, max_tokens=1, **fields)
    house.run()
    assert house.events["b"][-1].num_cached_tokens == 0
    house.assert_as_expected("b")


def test_a_request_that_bypasses_the_cache_leaves_nothing_in_it():
    house = House()
    house.submit("a", [1] * 11, max_tokens=1, bypass_prefix_cache=True)
    house.run()
    house.submit("b", [1] * 11, max_tokens=1)
    house.run()
    assert house.stats.prefix_hit_tokens == 0


def test_a_forgotten_prefix_is_found_no_more():
    house = House()
    house.submit("a", [1] * 11, max_tokens=1)
    house.run()
    house.engine.forget_prefixes()
    house.submit("b", [1] * 11, max_tokens=1)
    house.run()
    assert house.stats.prefix_hit_tokens == 0
    house.assert_idle()


def test_a_window_group_needs_only_its_last_window_for_a_hit():
    house = House((full_group(), window_group(5, num_pages=5)), max_num_batched_tokens=4)
    house.submit("a", [1] * 17, max_tokens=1)
    house.run()
    house.submit("b", [*[1] * 16, 2, 2, 2], max_tokens=2)
    house.run()
    assert house.events["b"][-1].num_cached_tokens == 16
    house.assert_as_expected("b")


def test_cached_pages_are_given_away_before_anybody_is_preempted():
    house = House((full_group(num_pages=5),))
    for number in range(4):
        house.submit(f"r{number}", [number + 1] * 13, max_tokens=3, ignore_eos=True)
        house.run()
        house.assert_as_expected(f"r{number}")
    assert house.stats.num_preemptions == 0


def test_what_paging_saves_is_counted():
    house = House(max_model_len=64)
    house.submit("a", [1] * 5, max_tokens=4, ignore_eos=True)
    house.run()
    assert house.stats.contiguous_token_steps == 4 * 64
    assert house.stats.paged_token_steps == 4 * 8
    assert house.stats.cached_token_steps == 5 + 6 + 7 + 8
