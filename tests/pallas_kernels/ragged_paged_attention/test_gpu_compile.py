"""The Hopper kernel through the real compilers, for a chip that is not here (sm_90a)."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pallas_kernels import init_kv_pages, ragged_paged_attention

REPORT = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads\D+Used (\d+) registers")


def compiled(
    hopper_mesh,
    *,
    num_pages=200,
    head_dim=128,
    page_size=64,
    pages_per_row=32,
    heads=(8, 2),
    dtype="bfloat16",
    q_dtype="bfloat16",
    slots=8,
    tokens=8,
    decode=True,
    has_scales=False,
    has_sinks=False,
    **options,
):
    """One call, compiled; ``decode`` or else a program for prompts only."""
    num_heads, num_kv_heads = heads
    here = NamedSharding(hopper_mesh, PartitionSpec())
    pages = jax.eval_shape(
        lambda: init_kv_pages(num_pages, page_size, num_kv_heads, head_dim, dtype, "gpu")
    )
    kinds = np.array([slots if decode else 0, slots, slots], np.int32)

    def call(pages, q, k, v, sinks, scale, *rows):
        return ragged_paged_attention(
            q,
            k,
            v,
            pages,
            *rows,
            kinds,
            scale=0.1,
            sinks_N=sinks,
            k_scale_K=scale,
            v_scale_K=scale,
            implementation="gpu",
            **options,
        )

    new = jax.ShapeDtypeStruct((tokens, num_kv_heads, head_dim), jnp.dtype(q_dtype))
    shapes = (
        pages,
        jax.ShapeDtypeStruct((tokens, num_heads, head_dim), jnp.dtype(q_dtype)),
        new,
        new,
        jax.ShapeDtypeStruct((num_heads,), jnp.float32) if has_sinks else None,
        jax.ShapeDtypeStruct((num_kv_heads,), jnp.float32) if has_scales else None,
        jax.ShapeDtypeStruct((slots,), jnp.int32),
        jax.ShapeDtypeStruct((slots, pages_per_row), jnp.int32),
        jax.ShapeDtypeStruct((slots + 1,), jnp.int32),
    )
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)
    return jax.jit(call, donate_argnums=0, out_shardings=here).lower(*placed).compile()


SHAPES = {
    "llama3-8b": {"heads": (32, 8), "head_dim": 128},
    "smollm2": {"heads": (9, 3), "head_dim": 64, "dtype": "float16", "page_size": 128},
    "gemma3-270m": {"heads": (4, 1), "head_dim": 256, "sliding_window": 512},
    "softcap": {"heads": (8, 4), "head_dim": 256, "logit_softcap": 50.0},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("decode", [True, False], ids=["decode", "prefill"])
def test_it_compiles_for_hopper_and_keeps_its_numbers_in_registers(
    decode, shape, hopper_mesh, monkeypatch, capfd
):
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTXAS", "1")
    tokens = 8 if decode else 512
    compiled(hopper_mesh, decode=decode, tokens=tokens, **shape)
    said = "".join(capfd.readouterr())
    reports = [tuple(map(int, found)) for found in REPORT.findall(said)]
    assert len(reports) == 1, said
    assert reports[0][:2] == (0, 0), f"spill stores, spill loads, registers: {reports[0]}"


@pytest.mark.parametrize("decode", [True, False], ids=["decode", "prefill"])
def test_no_step_copies_the_pool(decode, hopper_mesh):
    small, large = (
        compiled(hopper_mesh, decode=decode, num_pages=pages).memory_analysis()
        for pages in (1_000, 20_000)
    )
    assert large.temp_size_in_bytes == small.temp_size_in_bytes
    assert large.alias_size_in_bytes == 20_000 * 2 * 2 * 64 * 128 * 2
