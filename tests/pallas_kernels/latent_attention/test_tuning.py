"""Sizes of blocks: what may stand in a table, and what the heuristic makes of real shapes."""

from dataclasses import replace

import jax
import pytest

from pallas_kernels import tile_table
from pallas_kernels.dispatch import NoImplementation
from pallas_kernels.latent_attention import gpu_tuning
from pallas_kernels.latent_attention.bench import OPERATION
from pallas_kernels.latent_attention.specs import Spec
from pallas_kernels.latent_attention.tpu_tuning import (
    VMEM_BYTES,
    Problem,
    Tiles,
    candidates,
    heuristic,
    vmem_bytes,
)

DEEPSEEK = Problem(
    case="mixed",
    num_heads=128,
    width=640,
    page_size=64,
    itemsize=2,
    q_itemsize=2,
    num_tokens=2048,
    pages_per_row=128,
)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"long_positions": 48}, r"long_positions = 48 is not a power of two"),
        ({"short_tokens": 0}, r"short_tokens = 0 is not a power of two"),
        ({"short_tokens": 8}, r"long_tokens = 4 is below short_tokens = 8"),
    ],
)
def test_other_sizes_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        Tiles(**{"short_positions": 64, "long_tokens": 4, "long_positions": 64, **sizes})


@pytest.mark.parametrize(
    ("changes", "short_positions", "long_tokens", "long_positions"),
    [
        # 512 rows of queries are 4 tokens of 128 heads.
        ({}, 1024, 4, 512),
        ({"num_heads": 16}, 1024, 32, 512),
        # No more tokens than there are.
        ({"num_heads": 16, "num_tokens": 9}, 1024, 8, 512),
        # No more positions than a row can have: 3 pages of 64.
        ({"pages_per_row": 3}, 128, 4, 128),
        # 2 MiB of positions: 2,048 lanes of 4 bytes each; as many bytes of queries.
        ({"width": 2048, "itemsize": 4, "q_itemsize": 4}, 256, 2, 256),
        ({"num_heads": 1024}, 1024, 1, 512),
    ],
)
def test_the_heuristic_fills_what_it_may(changes, short_positions, long_tokens, long_positions):
    assert heuristic(replace(DEEPSEEK, **changes)) == Tiles(
        short_positions=short_positions, long_tokens=long_tokens, long_positions=long_positions
    )


@pytest.mark.parametrize(
    ("case", "fixed"),
    [
        ("decode", {"long_tokens", "long_positions"}),
        ("prefill", {"short_positions"}),
        ("mixed", {}),
    ],
)
def test_candidates_differ_in_what_the_program_has(case, fixed):
    problem = replace(DEEPSEEK, case=case)
    first, *others = candidates(problem)
    assert first == heuristic(problem)
    assert len({first, *others}) == 1 + len(others) > 1
    varied = {name for tiles in others for name, x in vars(tiles).items() if x != vars(first)[name]}
    assert varied == {"short_positions", "long_tokens", "long_positions"} - set(fixed)


WIDE = replace(DEEPSEEK, width=2048, itemsize=4, q_itemsize=4, page_size=64, is_unwritten=True)


@pytest.mark.parametrize("problem", [DEEPSEEK, WIDE], ids=["deepseek", "wide"])
def test_all_candidates_fit_into_vmem(problem):
    every = list(candidates(problem))
    assert len(every) > 1
    assert max(vmem_bytes(problem, tiles) for tiles in every) <= VMEM_BYTES == 48 * 2**20
    # What is allocated for long rows: blocks of latents and of queries, results and sums.
    tiles = every[0]
    rows, lanes = tiles.long_tokens * 128, problem.width
    latents = 2 * tiles.long_positions * lanes * problem.itemsize * (1 + problem.is_unwritten)
    queries = 2 * rows * lanes * problem.q_itemsize
    allocated = latents + 2 * queries + rows * (128 + 128 + lanes) * 4
    assert allocated <= vmem_bytes(problem, tiles, spills=False) < vmem_bytes(problem, tiles)


def test_what_does_not_fit_into_vmem_is_no_candidate_and_refused_when_it_is_the_least():
    twice = {"short_positions": 512, "long_tokens": 4, "long_positions": 512}
    assert vmem_bytes(WIDE, Tiles(**twice)) > VMEM_BYTES
    assert Tiles(**twice) not in list(candidates(WIDE))
    with pytest.raises(NoImplementation, match=r"takes \d+ bytes of VMEM .* above 50331648"):
        heuristic(replace(WIDE, num_heads=2048))


@pytest.mark.parametrize("group_size", [16, 64])
@pytest.mark.parametrize("max_queries", [1, 512])
@pytest.mark.parametrize("latent_rank", [256, 512])
def test_gpu_candidates_fit_into_shared_memory_and_do_not_repeat(
    latent_rank, max_queries, group_size
):
    problem = gpu_tuning.Problem(
        case="mixed",
        max_queries=max_queries,
        num_slots=8,
        num_positions=8192,
        num_groups=1,
        group_size=group_size,
        latent_rank=latent_rank,
        rope_dim=64,
    )
    first, *others = gpu_tuning.candidates(problem)
    assert first == gpu_tuning.heuristic(problem)
    assert len({first, *others}) == 1 + len(others)
    for tiles in (first, *others):
        # Queries, or sums on their way out; weights; blocks of latents.
        queries = 64 * (max(latent_rank * 2, 1024) + 64 * 2) + 64 * 64 * 2
        assert queries + tiles.stages * 64 * (latent_rank + 64) * 2 <= 224 * 1024


PADDED = {"num_heads": 16, "num_slots": 8, "num_tokens": 16, "max_len": 1024}
KINDS = {
    "decode": Spec(**PADDED, rows=((1, 900),) * 8),
    "prefill": Spec(**PADDED, rows=((2, 2),) * 8),
    "mixed": Spec(**PADDED, rows=((1, 900), (4, 4))),
}


@pytest.mark.parametrize("implementation", ["tpu", "gpu"])
def test_programs_of_one_shape_for_different_rows_are_different_questions(implementation):
    asked = {kind: questions(spec, implementation) for kind, spec in KINDS.items()}
    for kind, problems in asked.items():
        assert {problem.case for problem in problems} == {kind}
    keys = [str(tile_table.key_of(problem)) for problems in asked.values() for problem in problems]
    assert len(set(keys)) == len(keys) == {"tpu": 3, "gpu": 4}[implementation]


def questions(spec, implementation):
    """The problems that a step asks tiles for."""
    case = OPERATION.case(spec, "bfloat16", implementation)
    carried, arguments = jax.eval_shape(case.make)
    with tile_table.trial(OPERATION.name, {}) as asked:
        jax.eval_shape(lambda *x: case.run(*x), carried, *arguments)
    return [question.problem for question in asked.values()]
