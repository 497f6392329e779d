"""Whole steps of sampling: against a plain twin, alone against in company, over many steps."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxinfer.bits import all_ids, pack_ids
from jaxinfer.sampling import (
    SamplingState,
    SlotSampling,
    admit,
    init_state,
    sample,
    slot_sampling,
)
from jaxinfer.sampling.keys import uniforms
from jaxinfer.sampling_params import SamplingParams

# More slots than are worked on at a time, and neither of them a multiple of a block.
SLOTS, VOCAB, EOS = 21, 700, 2
NOT_FINISHED, STOP, LENGTH = 0, 1, 2

step = jax.jit(sample, static_argnames="has_loops")
put = jax.jit(admit)
ALL_ACTIVE = np.ones(SLOTS, bool)

EVERYTHING = SamplingParams(
    temperature=0.8,
    top_k=90,
    top_p=0.9,
    min_p=0.001,
    presence_penalty=0.5,
    frequency_penalty=0.25,
    repetition_penalty=1.3,
    logit_bias={5: 2.0, 6: -1.0},
    allowed_token_ids=range(650),
    min_tokens=3,
    max_tokens=9,
    logprobs=5,
    seed=11,
)
KINDS = [
    SamplingParams(temperature=0),
    SamplingParams(temperature=0, logprobs=2),
    SamplingParams(temperature=0, presence_penalty=1.5, min_tokens=4),
    SamplingParams(seed=1),
    SamplingParams(seed=2, top_k=5),
    SamplingParams(seed=3, top_p=0.3),
    SamplingParams(seed=4, temperature=3.0, top_p=0.95),
    SamplingParams(seed=5, min_p=0.2, logprobs=0),
    SamplingParams(seed=6, logit_bias={7: 9.0}),
    EVERYTHING,
]


def row_of(params: SamplingParams, **given: object) -> SlotSampling:
    values = {"sample_index": 0, "vocab_size": VOCAB, "eos_token_ids": [EOS], "max_tokens": 1000}
    return slot_sampling(params, **(values | given))


def state_of(rows: dict[int, SlotSampling]) -> SamplingState:
    state = init_state(SLOTS, VOCAB)
    for slot, row in rows.items():
        state = put(state, np.int32(slot), row)
    return state


def logits_of(seed: int, rows: int = SLOTS, scale: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, (rows, VOCAB)).astype(np.float32)


def result_of(output, slot: int) -> list[bytes]:
    return [np.asarray(leaf[slot]).tobytes() for leaf in jax.tree.leaves(output)]


def test_all_greedy_rows_take_the_first_of_the_largest_logits():
    logits = np.random.default_rng(0).integers(-4, 4, (SLOTS, VOCAB)).astype(np.float32)
    output, _ = step(logits, init_state(SLOTS, VOCAB), ALL_ACTIVE)
    assert output.tokens_S.tolist() == np.argmax(logits, axis=-1).tolist()


@given(
    seed=st.integers(0, 2**32 - 1),
    temperature=st.floats(0.0625, 5, width=32),
    top_k=st.sampled_from([0, 3, 40, 300]),
    top_p=st.floats(0.0625, 1, width=32),
    min_p=st.sampled_from([0.0, 0.01, 0.3]),
)
def test_a_token_is_the_plain_inverse_of_the_filtered_distribution(
    seed, temperature, top_k, top_p, min_p
):
    params = SamplingParams(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed
    )
    row, logits = row_of(params), logits_of(seed)
    uniform = float(uniforms(row.key_2[None], np.zeros(1, np.int32))[0])

    x = logits[4].astype(np.float64)
    weights = np.exp((x - x.max()) / float(row.temperature))
    order = np.argsort(-weights)
    kept = order[weights[order] >= min_p]
    kept = kept[:top_k] if top_k else kept
    before = np.cumsum(weights[kept]) - weights[kept]
    goal = top_p * weights[kept].sum()
    # Rounding may decide where a sum meets its goal to within a millionth; elsewhere it may not.
    tolerance = 1e-6 * weights.sum()
    kept_at = [kept[before < goal + shift] for shift in (-tolerance, tolerance)]
    possible = set()
    for ids in kept_at:
        ids = np.sort(ids if top_p < 1 else kept)
        running = np.cumsum(weights[ids])
        for shift in (-tolerance, tolerance):
            place = np.searchsorted(running, uniform * running[-1] + shift, side="right")
            possible.add(int(ids[min(place, len(ids) - 1)]))
    for has_loops in (True, False):
        arguments = (logits, state_of({4: row}), np.arange(SLOTS) == 4)
        output, _ = step(*arguments, has_loops=has_loops)
        assert int(output.tokens_S[4]) in possible


def test_a_row_is_bit_for_bit_the_same_alone_in_any_slot_and_beside_any_neighbours():
    logits = logits_of(5, rows=1)[0]
    rng = np.random.default_rng(0)
    for params in KINDS:
        row = row_of(params, prompt=[1, 5, 9], generated=[5, 30])
        results = set()
        for slot in (0, 7, SLOTS - 1):
            alone = np.full((SLOTS, VOCAB), np.nan, np.float32)
            alone[slot] = logits
            output, _ = step(alone, state_of({slot: row}), np.arange(SLOTS) == slot)
            results.add(tuple(result_of(output, slot)))

            crowd = logits_of(slot + 100)
            crowd[slot] = logits
            kinds = rng.integers(0, len(KINDS), SLOTS)
            rows = {other: row_of(KINDS[kind]) for other, kind in enumerate(kinds)}
            output, _ = step(crowd, state_of(rows | {slot: row}), ALL_ACTIVE)
            results.add(tuple(result_of(output, slot)))
        assert len(results) == 1, params


def test_inactive_rows_are_zero_and_leave_no_trace():
    logits = np.full((SLOTS, VOCAB), np.nan, np.float32)
    state = state_of({slot: row_of(EVERYTHING) for slot in range(SLOTS)})
    output, after = step(logits, state, np.zeros(SLOTS, bool))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(output))
    for leaf, before in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
        assert np.array_equal(leaf, before)


def test_a_mask_of_all_ids_changes_nothing_and_another_is_obeyed():
    logits = logits_of(3)
    state = state_of({slot: row_of(KINDS[slot % len(KINDS)]) for slot in range(SLOTS)})
    every = np.tile(all_ids(VOCAB), (SLOTS, 1))
    free, _ = step(logits, state, ALL_ACTIVE)
    masked, _ = step(logits, state, ALL_ACTIVE, every)
    for slot in range(SLOTS):
        assert result_of(free, slot) == result_of(masked, slot)
    every[3] = pack_ids([41, 43], VOCAB)
    masked, _ = step(logits, state, ALL_ACTIVE, every)
    assert int(masked.tokens_S[3]) in (41, 43)
    for slot in set(range(SLOTS)) - {3}:
        assert result_of(free, slot) == result_of(masked, slot)


def test_a_mask_that_leaves_nothing_of_a_slot_yields_in_that_row():
    logits = logits_of(1)
    rows = {
        slot: row_of(replace(params, allowed_token_ids=[EOS, 41, 43], ignore_eos=False))
        for slot, params in enumerate(KINDS)
    }
    mask = np.tile(pack_ids(set(range(VOCAB)) - {EOS, 41, 43}, VOCAB), (SLOTS, 1))
    mask[len(KINDS) :] = pack_ids([50], VOCAB)
    free, _ = step(logits, state_of(rows), ALL_ACTIVE)
    masked, _ = step(logits, state_of(rows), ALL_ACTIVE, mask)
    for slot, params in enumerate(KINDS):
        assert int(masked.tokens_S[slot]) in ({41, 43} if params.min_tokens else {EOS, 41, 43})
        assert result_of(masked, slot) == result_of(free, slot)
    assert set(masked.tokens_S[len(KINDS) :].tolist()) == {50}


def test_a_mask_that_leaves_only_ends_yields_before_min_tokens():
    params = SamplingParams(temperature=0, allowed_token_ids=[EOS, 41], min_tokens=1)
    mask = np.tile(pack_ids([EOS], VOCAB), (SLOTS, 1))
    first, state = step(logits_of(1), state_of({0: row_of(params)}), ALL_ACTIVE, mask)
    second, _ = step(logits_of(1), state, ALL_ACTIVE, mask)
    assert [int(output.tokens_S[0]) for output in (first, second)] == [41, EOS]


def test_padding_columns_are_never_looked_at():
    logits = logits_of(8)
    padded = np.concatenate((logits, np.full((SLOTS, 68), 1e9, np.float32)), axis=1)
    state = state_of({slot: row_of(KINDS[slot % len(KINDS)]) for slot in range(SLOTS)})
    plain, _ = step(logits, state, ALL_ACTIVE)
    wide, _ = step(padded, state, ALL_ACTIVE)
    assert np.all(np.asarray(wide.tokens_S) < VOCAB)
    for slot in range(SLOTS):
        assert result_of(wide, slot) == result_of(plain, slot)


def test_logprobs_are_of_the_raw_logits_and_only_for_who_asked():
    logits = logits_of(9)
    asking = SamplingParams(temperature=0, logit_bias={77: 100.0}, logprobs=3)
    output, _ = step(logits, state_of({2: row_of(asking)}), ALL_ACTIVE)
    raw = logits[2].astype(np.float64)
    logprobs = raw - np.log(np.exp(raw).sum())
    assert int(output.tokens_S[2]) == 77
    np.testing.assert_allclose(output.logprob_S[2], logprobs[77], rtol=1e-5)
    assert int(output.rank_S[2]) == 1 + np.sum(raw > raw[77])
    assert output.top_ids_SA[2].tolist() == np.argsort(-raw)[:20].tolist()
    others = np.arange(SLOTS) != 2
    for leaf in (output.logprob_S, output.rank_S, output.top_ids_SA, output.top_logprobs_SA):
        assert not np.any(np.asarray(leaf)[others])


def test_a_stop_token_ends_a_sequence_and_the_last_token_does_so_for_length():
    logits = np.zeros((SLOTS, VOCAB), np.float32)
    logits[:, EOS] = 5
    logits[:, 9] = 4
    greedy = SamplingParams(temperature=0)
    state = state_of(
        {
            0: row_of(greedy),
            1: row_of(SamplingParams(temperature=0, ignore_eos=True), max_tokens=2),
            2: row_of(SamplingParams(temperature=0, min_tokens=2), max_tokens=2),
            3: row_of(SamplingParams(temperature=0, min_tokens=1, stop_token_ids=[9])),
            4: row_of(greedy, generated=[1] * 999),
            5: row_of(SamplingParams(temperature=0, ignore_eos=True), generated=[1] * 999),
        }
    )
    first, state = step(logits, state, ALL_ACTIVE)
    second, state = step(logits, state, ALL_ACTIVE)
    assert first.tokens_S[:6].tolist() == [EOS, EOS, 9, 0, EOS, EOS]
    assert first.finish_S[:6].tolist() == [STOP, NOT_FINISHED, NOT_FINISHED, 0, STOP, LENGTH]
    assert second.tokens_S[1:4].tolist() == [EOS, 9, EOS]
    assert second.finish_S[1:4].tolist() == [LENGTH, LENGTH, STOP]


def run(state: SamplingState, slot: int, positions: range) -> list[int]:
    """Tokens of one slot, its logits a function of the position alone."""
    tokens = []
    for position in positions:
        logits = np.zeros((SLOTS, VOCAB), np.float32)
        logits[slot] = logits_of(1000 + position, rows=1)
        output, state = step(logits, state, np.arange(SLOTS) == slot)
        tokens.append(int(output.tokens_S[slot]))
    return tokens


@pytest.mark.parametrize("params", [EVERYTHING, SamplingParams(seed=8, frequency_penalty=2.0)])
def test_a_sequence_continued_in_another_slot_is_the_uninterrupted_one(params):
    prompt = [1, 5, 9]
    whole = run(state_of({3: row_of(params, prompt=prompt)}), 3, range(8))
    resumed = state_of({17: row_of(params).with_tokens(prompt, whole[:5])})
    assert run(resumed, 17, range(5, 8)) == whole[5:]


def test_a_seed_repeats_its_tokens_and_samples_of_one_prompt_differ():
    params = SamplingParams(seed=123, temperature=2.0)
    runs = [
        run(state_of({slot: row_of(params, sample_index=index)}), slot, range(12))
        for slot, index in ((0, 0), (9, 0), (0, 1))
    ]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        (SamplingParams(temperature=0.7), 12),
        (SamplingParams(temperature=1.5, top_k=5), 5),
        (SamplingParams(top_p=0.8), None),
        (SamplingParams(min_p=0.3), None),
    ],
)
def test_frequencies_are_those_of_the_renormalised_kept_probabilities(params, kept):
    logits = np.full(VOCAB, -np.inf)
    logits[::60] = np.random.default_rng(4).normal(0, 1.2, 12)
    weights = np.exp((logits - logits.max()) / params.temperature)
    order = np.argsort(-weights)
    share = np.cumsum(weights[order]) / weights.sum()
    if params.top_p < 1:
        kept = int(np.searchsorted(share, params.top_p)) + 1
    if params.min_p > 0:
        kept = int(np.sum(weights >= params.min_p))
    ids = order[:kept]
    expected = weights[ids] / weights[ids].sum()

    state = state_of({slot: row_of(params, default_seed=slot) for slot in range(SLOTS)})
    rows = np.tile(logits.astype(np.float32), (SLOTS, 1))
    counts = np.zeros(VOCAB)
    for _ in range(200):
        output, state = step(rows, state, ALL_ACTIVE)
        np.add.at(counts, np.asarray(output.tokens_S), 1)
    assert set(np.flatnonzero(counts)) <= set(ids.tolist())
    expected = expected * counts.sum()
    # Chi-square with at most 11 degrees of freedom: 31.26 is exceeded once in a thousand seeds.
    assert np.sum((counts[ids] - expected) ** 2 / expected) < 31.26


def test_a_tiny_temperature_takes_the_best_and_a_huge_one_any_token():
    logits = logits_of(6)
    cold = state_of({slot: row_of(SamplingParams(temperature=5e-324)) for slot in range(SLOTS)})
    output, _ = step(logits * np.float32(1e30), cold, ALL_ACTIVE)
    assert output.tokens_S.tolist() == np.argmax(logits, axis=-1).tolist()
    hot = state_of(
        {
            slot: row_of(SamplingParams(temperature=1e300), default_seed=slot)
            for slot in range(SLOTS)
        }
    )
    output, _ = step(logits, hot, ALL_ACTIVE)
    assert len(set(output.tokens_S.tolist())) > SLOTS // 2


def test_temporaries_do_not_grow_with_the_number_of_slots():
    vocab = 8192

    def temporaries(num_slots: int) -> int:
        arguments = jax.eval_shape(
            lambda: (
                jnp.zeros((num_slots, vocab)),
                init_state(num_slots, vocab),
                jnp.ones((num_slots,), jnp.bool_),
                jnp.zeros((num_slots, vocab // 32), jnp.uint32),
            )
        )
        compiled = jax.jit(sample, donate_argnums=1).lower(*arguments).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    # Three float32 copies of the sixteen rows at work, and less than one row for each slot.
    few, many = temporaries(32), temporaries(128)
    assert few < 3.5 * 16 * vocab * 4
    assert many - few < 96 * vocab


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_sampling_lowers_for_accelerators(platform):
    arguments = jax.eval_shape(
        lambda: (
            jnp.zeros((SLOTS, VOCAB)),
            init_state(SLOTS, VOCAB),
            jnp.ones((SLOTS,), jnp.bool_),
            jnp.zeros((SLOTS, len(all_ids(VOCAB))), jnp.uint32),
        )
    )
    exported = jax.export.export(step, platforms=[platform])(*arguments)
    assert exported.platforms == (platform,)
