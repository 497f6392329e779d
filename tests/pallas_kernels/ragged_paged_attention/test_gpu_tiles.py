"""The sizes that the Hopper kernel may have, and what its table of sizes is asked."""

from dataclasses import replace

import jax
import pytest

from pallas_kernels import tile_table
from pallas_kernels.dispatch import NoImplementation
from pallas_kernels.ragged_paged_attention import gpu_plan
from pallas_kernels.ragged_paged_attention.bench import OPERATION
from pallas_kernels.ragged_paged_attention.gpu_limits import HEAD_DIMS, PAGE_DTYPES
from pallas_kernels.ragged_paged_attention.gpu_tiles import GpuProblem
from pallas_kernels.ragged_paged_attention.gpu_tuning import gpu_candidates, gpu_heuristic
from pallas_kernels.ragged_paged_attention.specs import Spec

DECODE = GpuProblem(
    case="decode",
    max_queries=1,
    num_slots=8,
    num_positions=4096,
    num_groups=2,
    group_size=4,
    head_dim=128,
    pages_dtype="bfloat16",
    out_dtype="float32",
)
TILES = gpu_heuristic(DECODE)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"block": 128}, "block = 128 is not 64"),
        ({"columns": 192}, "columns = 192 is not a multiple of 16 up to 128"),
        ({"prefill_warpgroups": 3}, "prefill_warpgroups = 3 is not 1 or 2"),
        ({"max_stages": 0}, "max_stages = 0 is not 1 or more"),
    ],
)
def test_sizes_that_the_kernel_cannot_have_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        replace(TILES, **sizes)


@pytest.mark.parametrize("pages_dtype", PAGE_DTYPES)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("case", ["decode", "prefill"])
def test_all_candidates_fit_begin_with_the_heuristic_and_do_not_repeat(case, head_dim, pages_dtype):
    queries = {"max_queries": 1} if case == "decode" else {"max_queries": 512}
    problem = replace(DECODE, case=case, head_dim=head_dim, pages_dtype=pages_dtype, **queries)
    first, *others = gpu_candidates(problem)
    assert first == gpu_heuristic(problem)
    assert len({first, *others}) == 1 + len(others)
    assert all(tiles.stages(problem) >= 1 for tiles in (first, *others))
    launches = [
        (t.warpgroups(problem), t.stages(problem), t.min_split, t.wanted_units)
        for t in (first, *others)
    ]
    assert len(set(launches)) == len(launches)


def test_two_warpgroups_are_no_candidate_where_shared_memory_has_no_room_for_them():
    wide = replace(DECODE, case="prefill", max_queries=512, head_dim=256, pages_dtype="float32")
    assert replace(TILES, columns=64, prefill_warpgroups=2).stages(wide) < 1
    assert {tiles.prefill_warpgroups for tiles in gpu_candidates(wide)} == {1}
    narrow = replace(wide, head_dim=64, pages_dtype="bfloat16")
    assert {tiles.prefill_warpgroups for tiles in gpu_candidates(narrow)} == {1, 2}


def test_tiles_that_do_not_fit_are_refused_with_their_sum_and_the_budget(monkeypatch):
    wide = replace(DECODE, case="prefill", max_queries=512, head_dim=256, pages_dtype="float32")
    tiles = replace(TILES, columns=64, prefill_warpgroups=2)
    monkeypatch.setattr(gpu_plan, "gpu_tiles_for", lambda _: tiles)
    # 128 queries of two bfloat16 parts, results and sums; converted keys; barriers; one block.
    needed = 128 * (2 * 2 * 256 + 64 * 4 + 4) + 2 * 64 * 2 * 2 * 256 + 3 * 1024 + 64 * 256 * 4
    with pytest.raises(NoImplementation, match=f"takes {needed} bytes .* above {227 * 1024}"):
        gpu_plan.plan(wide)


PADDED = {"num_heads": 8, "num_kv_heads": 2, "head_dim": 64, "num_tokens": 16}
SPEC = Spec(**PADDED, num_slots=8, rows=((1, 400),) * 8)
OTHERS = {
    "prompts": replace(SPEC, rows=((2, 2),) * 8),
    "mixed": replace(SPEC, rows=((1, 400), (4, 4))),
    "more slots": replace(SPEC, num_slots=16),
    "longer rows": replace(SPEC, max_len=8192),
    "a window": replace(SPEC, sliding_window=128),
    "fewer heads": replace(SPEC, num_kv_heads=1),
}


def questions(spec):
    """The problems that a step asks tiles for, as a table knows them."""
    case = OPERATION.case(spec, "bfloat16", "gpu")
    carried, arguments = jax.eval_shape(case.make)
    with tile_table.trial(OPERATION.name, {}) as asked:
        jax.eval_shape(lambda *x: case.run(*x), carried, *arguments)
    return {identity: question.problem for identity, question in asked.items()}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_programs_with_other_best_sizes_are_other_questions(other):
    assert len(questions(SPEC)) == 1
    assert not questions(SPEC).keys() & questions(other).keys()


def test_numbers_up_to_a_power_of_two_are_one_question():
    seven = replace(SPEC, num_slots=7, rows=SPEC.rows[:7], max_len=450)
    assert questions(seven).keys() == questions(SPEC).keys()
