"""The Hopper kernel through the real compilers, for a chip that is not here (sm_90a): what no spec
has. The specs are compiled in ``test_compile_specs.py``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pallas_kernels import init_kv_pages, ragged_paged_attention, tile_table
from tests.chips import REPORT


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


INT8 = {"dtype": "int8", "has_scales": True}
E4M3 = {"dtype": "float8_e4m3fn", "has_scales": True}
FLOAT32 = {"dtype": "float32", "q_dtype": "float32"}
UNWRITTEN = {"update_kv_cache": False, "causal": False}
LLAMA3_8B = {"heads": (32, 8), "head_dim": 128}
GEMMA3_LOCAL = {"heads": (4, 1), "head_dim": 256, "sliding_window": 512}
GPT_OSS = {"heads": (64, 8), "head_dim": 64, "sliding_window": 128, "has_sinks": True}
DECODE = {
    "float16": {"heads": (9, 3), "head_dim": 64, "dtype": "float16", "page_size": 128},
    "heads of 80": {"heads": (32, 32), "head_dim": 80},
    "heads of 96": {"heads": (32, 32), "head_dim": 96},
    "heads of 192": {"heads": (16, 2), "head_dim": 192},
    "100 heads a kv head": {"heads": (100, 1)},
    "int8": LLAMA3_8B | INT8,
    "int8, heads of 80": {"head_dim": 80} | INT8,
    "int8, gemma3 local": GEMMA3_LOCAL | INT8,
    "e4m3": LLAMA3_8B | E4M3,
    "e4m3, heads of 96": {"head_dim": 96} | E4M3,
    "e4m3, gemma3 local": GEMMA3_LOCAL | E4M3,
    "e5m2, gpt-oss": GPT_OSS | {"dtype": "float8_e5m2"},
    "pages of 256": {"page_size": 256},
    "float32": LLAMA3_8B | FLOAT32,
    "float32, heads of 256": {
        "heads": (64, 1),
        "head_dim": 256,
        "logit_softcap": 50.0,
        "sliding_window": 1,
    }
    | FLOAT32,
    "a large table": {"slots": 128, "tokens": 128, "pages_per_row": 4096},
    "unwritten int8": UNWRITTEN | INT8,
}
PREFILL = {
    "heads of 80": {"head_dim": 80},
    "heads of 192": {"head_dim": 192},
    "int8": LLAMA3_8B | INT8,
    "e4m3, heads of 192": {"head_dim": 192} | E4M3,
    "float32": {"head_dim": 96} | FLOAT32,
    "float32, heads of 256": {"head_dim": 256} | FLOAT32,
    "unwritten": LLAMA3_8B | UNWRITTEN,
}
#: What differs from others in a number that changes no line of the kernel.
LIKE_ANOTHER = {
    "decode heads of 96",
    "decode int8, heads of 80",
    "decode e4m3",
    "decode e4m3, gemma3 local",
    "decode unwritten int8",
    "prefill heads of 80",
    "prefill e4m3, heads of 192",
}
CALLS = [
    pytest.param(
        kind == "decode",
        shape,
        id=f"{kind} {name}",
        marks=pytest.mark.slow if f"{kind} {name}" in LIKE_ANOTHER else (),
    )
    for kind, shapes in (("decode", DECODE), ("prefill", PREFILL))
    for name, shape in shapes.items()
]


@pytest.mark.parametrize(("decode", "shape"), CALLS)
def test_it_compiles_for_hopper_in_registers_and_writes_in_place(
    decode, shape, hopper_mesh, monkeypatch, capfd
):
    """That shared memory suffices is what compiling says: more than 227 KiB is an error."""
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTXAS", "1")
    shape = {"tokens": 8 if decode else 512, "num_pages": 20_000, **shape}
    with tile_table.trial("ragged_paged_attention", None) as asked:
        memory = compiled(hopper_mesh, decode=decode, **shape).memory_analysis()
    [question] = asked.values()
    said = "".join(capfd.readouterr())
    [(spill_stores, spill_loads, registers)] = [
        tuple(map(int, found)) for found in REPORT.findall(said)
    ]
    head_dim, dtype = shape.get("head_dim", 128), shape.get("dtype", "bfloat16")
    assert (spill_stores, spill_loads) == (0, 0), f"with {registers} registers"
    warpgroups = question.tiles.warpgroups(question.problem)
    assert registers <= {1: 255, 2: 168}[warpgroups]
    _, num_kv_heads = shape.get("heads", (8, 2))
    positions = 20_000 * shape.get("page_size", 64)
    pool_bytes = 2 * positions * num_kv_heads * head_dim * jnp.dtype(dtype).itemsize
    assert memory.alias_size_in_bytes == pool_bytes
    assert memory.temp_size_in_bytes < pool_bytes / 20


def test_temporaries_of_an_unwritten_call_do_not_grow_with_the_pool(hopper_mesh):
    few, many = (
        compiled(hopper_mesh, num_pages=pages, **UNWRITTEN).memory_analysis()
        for pages in (1_000, 20_000)
    )
    assert many.temp_size_in_bytes == few.temp_size_in_bytes
