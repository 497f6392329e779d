"""The TPU kernel compiled by the real compiler, for chips that are not here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pallas_kernels import init_kv_pages, ragged_paged_attention

SHAPES = {
    "llama3, decode and prefill": {},
    "decode only": {"num_tokens": 8, "zones": (8, 8, 8)},
    "two values a register": {"num_heads": 9, "num_kv_heads": 3, "head_dim": 64},
    "gemma3, local": {
        "num_heads": 4,
        "num_kv_heads": 1,
        "head_dim": 256,
        "page_size": 16,
        "sliding_window": 512,
    },
    "gpt-oss": {"num_heads": 64, "head_dim": 64, "sliding_window": 128, "has_sinks": True},
    "softcap, large pages": {"logit_softcap": 30.0, "page_size": 256},
    "many heads of 80": {"num_kv_heads": 32, "head_dim": 80},
    "heads of 96": {"head_dim": 96},
    "heads of 192": {"num_heads": 16, "num_kv_heads": 16, "head_dim": 192},
    "float32": {"pages_dtype": "float32", "q_dtype": "float32"},
    "float16 queries": {"q_dtype": "float16", "num_tokens": 64},
    "int8": {"pages_dtype": "int8", "has_scales": True},
    "e4m3": {"pages_dtype": "float8_e4m3fn", "has_scales": True},
    "e5m2": {"pages_dtype": "float8_e5m2", "page_size": 32},
    "unwritten": {"update_kv_cache": False, "causal": False, "num_tokens": 64},
    "unwritten int8": {
        "update_kv_cache": False,
        "pages_dtype": "int8",
        "has_scales": True,
        "num_tokens": 64,
    },
    "without keys": {"has_new": False},
    # A table of half a million entries, more than the scalar memory holds.
    "a large table": {"num_slots": 128, "pages_per_row": 4096, "page_size": 32},
}


def compile_call(
    mesh,
    *,
    num_tokens=256,
    num_slots=8,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    page_size=64,
    pages_per_row=16,
    num_pages=1_000,
    pages_dtype="bfloat16",
    q_dtype="bfloat16",
    has_new=True,
    has_scales=False,
    has_sinks=False,
    zones=None,
    **options,
):
    """The compiled call on one chip, and the bytes of its pool."""
    here = NamedSharding(mesh, PartitionSpec())

    def array(shape, dtype):
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=here)

    pool = jax.eval_shape(
        lambda: init_kv_pages(
            num_pages, page_size, num_kv_heads, head_dim, pages_dtype, implementation="tpu"
        )
    )
    pool = jax.tree.map(lambda leaf: array(leaf.shape, leaf.dtype), pool)
    new = array((num_tokens, num_kv_heads, head_dim), q_dtype) if has_new else None
    scale = array((num_kv_heads,), "float32") if has_scales else None
    sinks = array((num_heads,), "float32") if has_sinks else None
    rows = [(num_slots,), (num_slots, pages_per_row), (num_slots + 1,), (3,)]

    def call(pages, q, k, v, sinks, scale, kv_lens, table, borders, distribution):
        return ragged_paged_attention(
            q,
            k,
            v,
            pages,
            kv_lens,
            table,
            borders,
            distribution if zones is None else np.asarray(zones, np.int32),
            scale=head_dim**-0.5,
            sinks_N=sinks,
            k_scale_K=scale,
            v_scale_K=scale,
            implementation="tpu",
            **options,
        )

    q = array((num_tokens, num_heads, head_dim), q_dtype)
    arguments = (pool, q, new, new, sinks, scale, *(array(shape, "int32") for shape in rows))
    with jax.set_mesh(mesh):
        compiled = jax.jit(call, donate_argnums=0).lower(*arguments).compile()
    return compiled, sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pool))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_shape_compiles_for_v6e_and_writes_in_place(shape, tpu_mesh):
    compiled, pool_bytes = compile_call(tpu_mesh("v6e"), **shape)
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes == pool_bytes
    assert memory.temp_size_in_bytes < 32 * 2**20


@pytest.mark.parametrize("pages_dtype", ["bfloat16", "int8", "float8_e4m3fn"])
@pytest.mark.parametrize("chip", ["v5e", "v5p", "tpu7x"])
def test_every_chip_gets_a_kernel(chip, pages_dtype, tpu_mesh):
    compiled, pool_bytes = compile_call(
        tpu_mesh(chip), num_tokens=64, pages_dtype=pages_dtype, has_scales=pages_dtype != "bfloat16"
    )
    assert compiled.memory_analysis().alias_size_in_bytes == pool_bytes


@pytest.mark.parametrize("pages_dtype", ["float32", "bfloat16", "int8", "float8_e4m3fn"])
def test_temporaries_do_not_grow_with_the_pool(pages_dtype, tpu_mesh):
    sizes = {"num_tokens": 8, "pages_dtype": pages_dtype, "has_scales": True}
    few, few_bytes = compile_call(tpu_mesh("v6e"), **sizes)
    many, many_bytes = compile_call(tpu_mesh("v6e"), num_pages=10_000, **sizes)
    # The compiler keeps more or fewer small arrays in VMEM; a copy of the pool would be all of it.
    growth = many.memory_analysis().temp_size_in_bytes - few.memory_analysis().temp_size_in_bytes
    assert growth < (many_bytes - few_bytes) / 100


def test_the_compiler_is_told_what_a_call_costs(tpu_mesh):
    compiled, _ = compile_call(tpu_mesh("v6e"), num_tokens=8)
    # Where nothing is known of a part, the sum is negative.
    assert compiled.cost_analysis()["optimal_seconds"] > 0
