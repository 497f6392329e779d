"""Sizes of the kernels: what they are for, and that they fit."""

import re
from dataclasses import replace

import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from pallas_kernels.dispatch import Chip, NoImplementation
from pallas_kernels.paging.rows import case_of
from pallas_kernels.ragged_paged_attention.tpu_tiles import tpu_vmem_bytes
from pallas_kernels.ragged_paged_attention.tpu_tuning import (
    TpuCall,
    tpu_budget,
    tpu_candidates,
    tpu_heuristic,
    tpu_tiles_for,
)
from pallas_kernels.tpu_chips import TPU_CHIPS

LLAMA3 = TpuCall(
    case="mixed",
    page_size=64,
    num_kv_heads=8,
    group_size=4,
    head_dim=128,
    q_dtype="bfloat16",
    pages_dtype="bfloat16",
)
CALLS = {
    "llama3": LLAMA3,
    "unwritten": replace(LLAMA3, is_unwritten=True),
    "one kv head": replace(LLAMA3, num_kv_heads=1, group_size=71, head_dim=64),
    "nine heads": replace(LLAMA3, num_kv_heads=3, group_size=3, head_dim=64),
    "large pages": replace(
        LLAMA3,
        num_kv_heads=64,
        head_dim=256,
        page_size=256,
        q_dtype="float32",
        pages_dtype="float32",
    ),
    "bytes": replace(LLAMA3, page_size=32, pages_dtype="float8_e4m3fn"),
}
CHIPS = [Chip("tpu", kind) for kind in (*TPU_CHIPS, "TPU v99")] + [Chip("cpu", "cpu")]


@pytest.mark.parametrize("case", ["decode", "prefill", "mixed"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.kind)
def test_all_candidates_fit_and_the_first_is_the_heuristic(chip, call, case):
    call = replace(call, case=case)
    candidates = tpu_candidates(chip, call)
    assert candidates[0] == tpu_heuristic(chip, call)
    assert len(set(candidates)) == len(candidates) > 1
    for tiles in candidates:
        assert tpu_vmem_bytes(call, tiles) <= tpu_budget(chip)
        assert call.num_kv_heads % tiles.kv_heads == 0
        for size in (tiles.short_positions, tiles.long_positions, tiles.long_rows, tiles.writes):
            assert size & (size - 1) == 0
        assert min(tiles.short_positions, tiles.long_positions) >= call.page_size


def test_a_call_whose_least_blocks_do_not_fit_is_refused_with_their_sum():
    call = replace(CALLS["large pages"], num_kv_heads=1, group_size=2048, case="decode")
    with pytest.raises(
        NoImplementation, match=r"takes (\d+) bytes of VMEM .* above 33554432"
    ) as said:
        tpu_heuristic(Chip("tpu", "TPU7x"), call)
    assert int(re.findall(r"\d+", str(said.value))[0]) > 2**25


def test_sizes_never_exceed_what_there_is():
    tiles = tpu_heuristic(CHIPS[0], LLAMA3)
    fitted = tiles.fit(LLAMA3, num_tokens=20, pages_per_row=3)
    assert fitted.short_positions == fitted.long_positions == 4 * 64
    assert fitted.long_rows == 16 * 4
    # 32 pages of a block have a bit each.
    small = replace(LLAMA3, page_size=16)
    assert tiles.fit(small, 10_000, 10_000).short_positions <= 32 * 16


def test_prefilling_has_as_many_rows_as_the_chip_computes_flops_for_a_byte():
    for chip in CHIPS[:4]:
        rows = tpu_heuristic(chip, LLAMA3).long_rows
        ratio = TPU_CHIPS[chip.kind].flops_per_byte
        assert max(256, ratio) <= rows <= max(256, 2 * ratio)


def test_two_cores_of_a_device_share_the_heads():
    v5p, v6e = Chip("tpu", "TPU v5"), Chip("tpu", "TPU v6 lite")
    assert tpu_heuristic(v5p, LLAMA3).kv_heads == 4
    assert tpu_heuristic(v6e, LLAMA3).kv_heads == 8
    assert tpu_heuristic(v5p, replace(LLAMA3, num_kv_heads=1)).kv_heads == 1


@pytest.mark.parametrize("kind", TPU_CHIPS)
def test_the_chip_is_that_of_the_mesh(kind):
    device = AbstractDevice(device_kind=kind, num_cores=TPU_CHIPS[kind].cores, platform="tpu")
    with use_abstract_mesh(AbstractMesh((1,), ("chip",), abstract_device=device)):
        assert tpu_tiles_for(LLAMA3) == tpu_heuristic(Chip("tpu", kind), LLAMA3)


@pytest.mark.parametrize("kind", TPU_CHIPS)
def test_the_memory_of_a_chip_is_what_jax_knows(kind):
    ours = TPU_CHIPS[kind]
    device = AbstractDevice(device_kind=kind, num_cores=ours.cores, platform="tpu")
    with use_abstract_mesh(AbstractMesh((1,), ("chip",), abstract_device=device)):
        assert pltpu.get_tpu_info().vmem_capacity_bytes == ours.vmem_bytes


@pytest.mark.parametrize(
    ("zones", "case"),
    [((8, 8, 8), "decode"), ((0, 8, 8), "prefill"), ((0, 3, 8), "mixed"), ((2, 8, 8), "mixed")],
)
def test_zones_that_are_known_say_what_a_program_is_for(zones, case):
    assert case_of(np.array(zones, np.int32)) == case
    assert case_of(object()) == "mixed"
