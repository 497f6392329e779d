"""Rows in and out of slots, and what they cost."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.bits import pack_ids
from jaxinfer.errors import InvalidParameter
from jaxinfer.sampling import (
    SamplingState,
    SlotSampling,
    admit,
    blank_slot_sampling,
    init_state,
    record,
    slot_sampling,
)
from jaxinfer.sampling_params import SamplingParams

VOCAB, SLOTS = 1000, 5


def row_of(params: SamplingParams, **given: object) -> SlotSampling:
    values = {"sample_index": 0, "vocab_size": VOCAB, "eos_token_ids": [2], "max_tokens": 30}
    return slot_sampling(params, **(values | given))


def slot_values(state: SamplingState, slot: int) -> list[np.ndarray]:
    return [np.asarray(leaf[slot]) for leaf in jax.tree.leaves(state)]


def test_a_slot_holds_what_was_admitted_and_the_others_stay_blank():
    params = SamplingParams(temperature=0.5, top_k=7, logit_bias={3: 1.5}, logprobs=4, seed=9)
    row = row_of(params, prompt=[1, 2], generated=[4, 4])
    state = admit(init_state(SLOTS, VOCAB), jnp.int32(3), row)
    for actual, expected in zip(slot_values(state, 3), jax.tree.leaves(row), strict=True):
        assert actual.dtype == expected.dtype
        assert np.array_equal(actual, expected)
    blank = jax.tree.leaves(blank_slot_sampling(VOCAB))
    for slot in (0, 1, 2, 4):
        for actual, expected in zip(slot_values(state, slot), blank, strict=True):
            assert np.array_equal(actual, expected)


def test_state_and_row_name_the_same_fields_in_the_same_order():
    states = [field.name for field in dataclasses.fields(SamplingState)]
    rows = [field.name for field in dataclasses.fields(SlotSampling)]
    # key_S2 and key_2, allowed_SW and allowed_W, top_k_S and top_k.
    assert [name.replace("_S", "_").rstrip("_") for name in states] == rows


def test_admission_and_record_copy_no_array():
    state = jax.eval_shape(lambda: init_state(64, 49152))
    row = jax.eval_shape(lambda: blank_slot_sampling(49152))
    slot = jax.ShapeDtypeStruct((), jnp.int32)
    tokens = jax.ShapeDtypeStruct((64,), jnp.int32)
    active = jax.ShapeDtypeStruct((64,), jnp.bool_)
    for function, arguments in ((admit, (slot, row)), (record, (tokens, active))):
        compiled = jax.jit(function, donate_argnums=0).lower(state, *arguments).compile()
        memory = compiled.memory_analysis()
        assert memory.temp_size_in_bytes < 64 * 1024
        assert memory.alias_size_in_bytes == sum(
            leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)
        )


def test_generated_tokens_are_counted_for_active_rows_only():
    state = init_state(3, VOCAB)
    for tokens in ([7, 7, 7], [7, 8, 9]):
        state = record(state, jnp.asarray(tokens, jnp.int32), jnp.asarray([True, False, True]))
    counts = np.asarray(state.output_counts_SV)
    assert state.num_generated_S.tolist() == [2, 0, 2]
    assert (counts[0, 7], counts[1].sum(), counts[2, 7], counts[2, 9]) == (2, 0, 1, 1)
    assert counts.sum() == 4


def test_a_count_stays_at_its_largest_value():
    row = row_of(SamplingParams(), generated=np.full(70_000, 5))
    state = admit(init_state(1, VOCAB), jnp.int32(0), row)
    state = record(state, jnp.asarray([5], jnp.int32), jnp.asarray([True]))
    assert int(state.output_counts_SV[0, 5]) == 65_535
    assert int(state.num_generated_S[0]) == 70_001


def test_recording_gives_the_row_that_those_tokens_would_have_uploaded():
    params = SamplingParams(repetition_penalty=1.5, seed=3)
    state = admit(init_state(2, VOCAB), jnp.int32(1), row_of(params, prompt=[1, 2, 3]))
    for token in (9, 4, 9):
        state = record(state, jnp.asarray([0, token], jnp.int32), jnp.asarray([False, True]))
    expected = row_of(params).with_tokens([1, 2, 3], [9, 4, 9])
    for actual, value in zip(slot_values(state, 1), jax.tree.leaves(expected), strict=True):
        assert np.array_equal(actual, value)


def test_end_of_sequence_stops_unless_ignored():
    assert np.array_equal(
        row_of(SamplingParams(stop_token_ids=[7])).stop_W, pack_ids([2, 7], VOCAB)
    )
    ignoring = row_of(SamplingParams(stop_token_ids=[7], ignore_eos=True))
    assert np.array_equal(ignoring.stop_W, pack_ids([7], VOCAB))


def test_filters_that_filter_nothing_are_off():
    assert row_of(SamplingParams(top_k=-1)).top_k == 0
    assert row_of(SamplingParams(top_k=VOCAB)).top_k == 0
    assert row_of(SamplingParams(top_k=2**40)).top_k == 0
    assert row_of(SamplingParams(top_k=1)).temperature == 0


def test_numbers_too_large_for_the_device_are_cut_to_what_means_the_same():
    row = row_of(SamplingParams(min_tokens=2**40, max_tokens=None), max_tokens=2**32 - 1)
    assert row.min_tokens == row.max_tokens == 2**31 - 1
    assert 0 < row_of(SamplingParams(temperature=5e-324)).temperature < 1e-5
    assert np.isfinite(row_of(SamplingParams(temperature=1e300)).temperature)


def test_banned_tokens_are_taken_from_the_allowed_ones():
    row = row_of(SamplingParams(allowed_token_ids=[1, 2, 3]), banned_token_ids=[2])
    assert np.array_equal(row.allowed_W, pack_ids([1, 3], VOCAB))
    assert row.is_restricted == 1
    assert row_of(SamplingParams()).is_restricted == 0
    with pytest.raises(InvalidParameter, match="leave no token to sample"):
        row_of(SamplingParams(allowed_token_ids=[2]), banned_token_ids=[2])


def test_min_tokens_ask_for_an_allowed_token_that_does_not_end():
    ending = SamplingParams(allowed_token_ids=[2, 9], stop_token_ids=[9])
    assert row_of(ending).min_tokens == 0
    early = dataclasses.replace(ending, min_tokens=2)
    with pytest.raises(InvalidParameter, match=r"min_tokens = 2 .* only tokens that end the seq"):
        row_of(early)
    assert row_of(dataclasses.replace(early, ignore_eos=True)).min_tokens == 2
    with pytest.raises(InvalidParameter, match="use min_tokens = 0, or allow a token"):
        row_of(dataclasses.replace(early, allowed_token_ids=[2, 5]), banned_token_ids=[5])


def test_a_request_without_a_seed_takes_the_default_one():
    own = row_of(SamplingParams(seed=7), default_seed=1)
    assert np.array_equal(own.key_2, row_of(SamplingParams(), default_seed=7).key_2)
    assert not np.array_equal(own.key_2, row_of(SamplingParams(seed=7), sample_index=1).key_2)
