"""Where a step has few rows, a program of few rows runs it: the same tokens."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.decoding.programs import ProgramShapes, ProgramTable
from jaxinfer.engine.build import build_engine
from jaxinfer.engine.engine import Engine
from jaxinfer.engine.request import Request
from jaxinfer.engine.runner import Pending
from jaxinfer.engine.step import StepPlan
from jaxinfer.models.model import Model
from jaxinfer.outputs import TokenEvent
from pallas_kernels import fill_kv_pages, native
from tests.e2e.test_blocked_kernels import wide_model
from tests.e2e.tiny import PAGE, poison, prompts, request, tiny_model
from tests.engine.test_runner import WordTokenizer

SLOTS = 12
# Rounding in float32 moves the tiny model's logits by less than this.
TOLERANCE = 1e-5
KINDS = (
    {"temperature": 0.0},
    {"temperature": 0.9, "top_p": 0.9, "seed": 11},
    {"temperature": 0.0, "presence_penalty": 0.5, "repetition_penalty": 1.2},
    {"allowed_token_ids": [20, 21, 22], "bad_words": ["20 20", "21 22"], "seed": 3},
    {"temperature": 0.7, "top_k": 5, "seed": 4, "n": 2},
)


def requests() -> list[Request]:
    return [
        request(
            f"r{i}",
            prompt,
            max_tokens=6 + 3 * (i % 5),
            ignore_eos=True,
            logprobs=2 if i % 3 else None,
            **KINDS[i % len(KINDS)],
        )
        for i, prompt in enumerate(prompts(20, [3, 9, 5, 1]))
    ]


def build(model: Model) -> Engine:
    engine = build_engine(
        model,
        WordTokenizer(),
        max_num_seqs=SLOTS,
        max_num_batched_tokens=16,
        prefill_tokens=(16,),
        page_size=PAGE,
        num_pages=20,
        enable_prefix_caching=False,  # so that a second run is the same as the first
        prompt_logprobs=False,
    )
    poison(engine)
    return engine


def without_few_rows(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The same engine, made to run all slots in every step."""
    programs = engine.runner._programs
    monkeypatch.setattr(programs, "shapes", replace(programs.shapes, decode_rows=()))
    engine.runner.reset()
    poison(engine)
    return engine


def trickled(engine: Engine) -> tuple[list[TokenEvent], dict[str, set[int]]]:
    """One output, then nine, then all others at once: what was said, and the rows by program."""
    runner, asked = engine.runner, requests()
    rows: dict[str, set[int]] = defaultdict(set)
    events: list[TokenEvent] = []
    plans: list[StepPlan] = []

    def launch(plan: StepPlan) -> Pending:
        plans.append(plan)
        return launch_plainly(plan)

    def forward(name: str, *args: object) -> tuple:
        rows[name].add(len(plans[-1].rows))
        return forward_plainly(name, *args)

    launch_plainly, forward_plainly = runner.launch, runner._programs.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "launch", launch)
        patch.setattr(runner._programs, "forward", forward)
        for some in (asked[:1], asked[1:9], asked[9:]):
            for one in some:
                engine.submit(one, events.extend)
            while engine.step():
                pass
    return events, rows


def said(events: Sequence[TokenEvent]) -> dict:
    """By output: tokens, ids of the log-probabilities, and these themselves."""
    outputs: dict = {}
    for event in events:
        tokens, ids, values = outputs.setdefault((event.request_id, event.index), ([], [], []))
        tokens.extend(event.token_ids)
        for position in event.logprobs or ():
            ids.append(list(position))
            values.append([entry.logprob for entry in position.values()])
    return outputs


def test_few_rows_give_the_tokens_of_all_slots_and_compile_nothing(
    monkeypatch: pytest.MonkeyPatch, compilations: Callable[[], int]
) -> None:
    engine = build(tiny_model((12, None)))
    ready = compilations()
    few_events, few_rows = trickled(engine)
    assert compilations() == ready
    assert engine.stats.num_preemptions > 0
    assert few_rows["decode/1/8"] >= {1, 8}
    assert few_rows["decode/1"] >= {9, 12}
    assert min(few_rows["decode/1"]) > 8
    full_events, full_rows = trickled(without_few_rows(engine, monkeypatch))
    assert full_rows["decode/1"] == few_rows["decode/1"] | few_rows["decode/1/8"]
    few, full = said(few_events), said(full_events)
    assert few.keys() == full.keys()
    for output, (tokens, ids, values) in full.items():
        assert few[output][:2] == (tokens, ids), output
        for few_values, full_values in zip(few[output][2], values, strict=True):
            np.testing.assert_allclose(few_values, full_values, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))
def test_with_packed_kernels_few_rows_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = build(wide_model())
    assert engine.runner.model.is_packed
    few_events, _ = trickled(engine)
    full_events, _ = trickled(without_few_rows(engine, monkeypatch))
    assert said(few_events) == said(full_events)


def test_only_the_pages_of_slots_with_a_row_are_written() -> None:
    """Idle rows lie at the last slot, which lives and has pages of its own."""
    num_slots, chosen = 5, (3, 1)
    shapes = ProgramShapes(
        num_slots=num_slots,
        pages_per_sequence=1,
        page_size=PAGE,
        num_pages=(num_slots + 1,),
        kv_dtype="float32",
        prefill_tokens=(8,),
        decode_rows=(4,),
    )
    table = ProgramTable(tiny_model((None,)), shapes)
    table.compile(only=["decode/1", "decode/1/4", "empty/cache", "empty/slots"])
    live_S = np.ones(num_slots, bool)
    live_S[1] = False
    slots = table.empty_slots()
    slots = replace(slots, live_S=table.replicate(live_S))
    tables = table.replicate((np.arange(1, num_slots + 1, dtype=np.int32)[:, None],))

    def run(name: str, rows: np.ndarray) -> tuple:
        cache = tuple(
            fill_kv_pages(pages, jnp.arange(pages.num_pages), float("nan"))
            for pages in table.empty_cache()
        )
        before = [np.asarray(leaf) for leaf in jax.tree.leaves(cache)]
        cache, logits, _ = table.forward(name, cache, slots, tables, table.replicate(rows))
        after = [np.asarray(leaf) for leaf in jax.tree.leaves(cache)]
        assert any(
            not np.array_equal(a, b, equal_nan=True) for a, b in zip(before, after, strict=True)
        )
        return after, logits

    planned_S = np.zeros(num_slots, np.int32)
    planned_S[list(chosen)] = 1
    slots_R = np.array([*chosen, num_slots, num_slots], np.int32)
    full, full_logits = run("decode/1", planned_S)
    few, few_logits = run("decode/1/4", slots_R)
    for full_leaf, few_leaf in zip(full, few, strict=True):
        np.testing.assert_array_equal(np.isnan(full_leaf), np.isnan(few_leaf))
        np.testing.assert_allclose(few_leaf, full_leaf, atol=TOLERANCE, rtol=TOLERANCE)
    assert np.asarray(few_logits.has_row_S).tolist() == [False, False, False, True, False]
    for field in ("has_row_S", "samples_S", "kv_lens_S"):
        one, other = getattr(full_logits, field), getattr(few_logits, field)
        np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(
        few_logits.logits_SV[3], full_logits.logits_SV[3], atol=TOLERANCE, rtol=TOLERANCE
    )
