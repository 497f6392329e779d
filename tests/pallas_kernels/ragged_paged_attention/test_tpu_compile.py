"""The TPU kernel compiled by the real compiler, for chips that are not here: what no spec has. The
specs are compiled in ``test_compile_specs.py``."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pallas_kernels import init_kv_pages, kv_pages_spec, ragged_paged_attention

REPLICATED = PartitionSpec()
SHAPES = {
    "small pages": {
        "num_heads": 4,
        "num_kv_heads": 1,
        "head_dim": 256,
        "page_size": 16,
        "sliding_window": 512,
    },
    "softcap, large pages": {"logit_softcap": 30.0, "page_size": 256},
    "many heads of 80": {"num_kv_heads": 32, "head_dim": 80},
    "large pages of 64 heads": {
        "num_heads": 64,
        "num_kv_heads": 64,
        "head_dim": 256,
        "page_size": 256,
        "pages_dtype": "float32",
        "q_dtype": "float32",
        "num_tokens": 16,
        "num_pages": 64,
    },
    "heads of 96": {"num_heads": 8, "num_kv_heads": 8, "head_dim": 96},
    "heads of 192": {"num_heads": 16, "num_kv_heads": 16, "head_dim": 192},
    "float32": {"pages_dtype": "float32", "q_dtype": "float32"},
    "float16 queries": {"q_dtype": "float16"},
    "int8": {"pages_dtype": "int8", "has_scales": True},
    "e4m3": {"pages_dtype": "float8_e4m3fn", "has_scales": True},
    "e5m2": {"pages_dtype": "float8_e5m2", "page_size": 32},
    "unwritten": {"update_kv_cache": False, "causal": False},
    "unwritten int8": {
        "update_kv_cache": False,
        "pages_dtype": "int8",
        "has_scales": True,
    },
    "without keys": {"has_new": False},
    # A table of half a million entries, more than the scalar memory holds.
    "a large table": {"num_slots": 128, "pages_per_row": 4096, "page_size": 32},
}
#: Take longest, and each differs in one size from a shape that does not: slow, for whoever asks.
LIKE_ANOTHER = {
    "softcap, large pages",
    "many heads of 80",
    "large pages of 64 heads",
    "float16 queries",
}


def lower_call(
    mesh,
    *,
    num_tokens=64,
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
    """The lowered call on all chips of the mesh, which share the kv heads, and the bytes of its
    pool."""
    heads = kv_pages_spec(mesh.axis_names[0])

    def array(shape, dtype, spec=REPLICATED):
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=NamedSharding(mesh, spec))

    pool = jax.eval_shape(
        lambda: init_kv_pages(
            num_pages, page_size, num_kv_heads, head_dim, pages_dtype, implementation="tpu"
        )
    )
    pool = jax.tree.map(lambda leaf: array(leaf.shape, leaf.dtype, heads), pool)
    new = array((num_tokens, num_kv_heads, head_dim), q_dtype, heads) if has_new else None
    each = PartitionSpec(*heads[1:])
    scale = array((num_kv_heads,), "float32", each) if has_scales else None
    sinks = array((num_heads,), "float32", each) if has_sinks else None
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

    q = array((num_tokens, num_heads, head_dim), q_dtype, heads)
    arguments = (pool, q, new, new, sinks, scale, *(array(shape, "int32") for shape in rows))
    specs = (*(heads,) * 4, each, each, *(REPLICATED,) * 4)
    with jax.set_mesh(mesh):
        if mesh.size > 1:
            call = jax.shard_map(call, in_specs=specs, out_specs=heads, check_vma=False)
        lowered = jax.jit(call, donate_argnums=0).lower(*arguments)
    return lowered, sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pool))


def compile_call(mesh, **shape):
    lowered, pool_bytes = lower_call(mesh, **shape)
    return lowered.compile(), pool_bytes


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(shape, id=name, marks=pytest.mark.slow if name in LIKE_ANOTHER else ())
        for name, shape in SHAPES.items()
    ],
)
def test_every_shape_compiles_for_v6e_and_writes_in_place(shape, tpu_mesh):
    compiled, pool_bytes = compile_call(tpu_mesh("v6e"), **shape)
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes == pool_bytes
    assert memory.temp_size_in_bytes < 32 * 2**20


@pytest.mark.parametrize(
    ("chip", "pages_dtype"),
    [
        ("v5e", "int8"),
        ("tpu7x", "float8_e4m3fn"),
        pytest.param("v5e", "float8_e4m3fn", marks=pytest.mark.slow),
        pytest.param("v5p", "int8", marks=pytest.mark.slow),
        pytest.param("v5p", "float8_e4m3fn", marks=pytest.mark.slow),
        pytest.param("tpu7x", "int8", marks=pytest.mark.slow),
    ],
)
def test_every_chip_reads_pages_of_bytes(chip, pages_dtype, tpu_mesh):
    compiled, pool_bytes = compile_call(tpu_mesh(chip), pages_dtype=pages_dtype, has_scales=True)
    assert compiled.memory_analysis().alias_size_in_bytes == pool_bytes


@pytest.mark.parametrize("pages_dtype", ["float32", "int8"])
def test_temporaries_do_not_grow_with_the_pool(pages_dtype, tpu_mesh):
    sizes = {"num_tokens": 8, "pages_dtype": pages_dtype, "has_scales": True}
    few, few_bytes = compile_call(tpu_mesh("v6e"), **sizes)
    many, many_bytes = compile_call(tpu_mesh("v6e"), num_pages=10_000, **sizes)
    # The compiler keeps more or fewer small arrays in VMEM; a copy of the pool would be all of it.
    growth = many.memory_analysis().temp_size_in_bytes - few.memory_analysis().temp_size_in_bytes
    assert growth < (many_bytes - few_bytes) / 100


def kernel_bytes(lowered):
    """The size of the kernel as it is handed to the compiler: the longest text in the program."""
    return max(len(line) for line in lowered.as_text().splitlines())


def test_a_program_for_rows_of_one_kind_has_no_code_for_the_others(tpu_mesh):
    mesh = tpu_mesh("v6e")
    kinds = {"mixed": None, "decode": (8, 8, 8), "prefill": (0, 8, 8)}
    lowered = {
        kind: lower_call(mesh, num_tokens=256, zones=zones)[0] for kind, zones in kinds.items()
    }
    size = {kind: kernel_bytes(x) for kind, x in lowered.items()}
    # Only the part that writes is in both.
    assert size["decode"] + size["prefill"] < 1.25 * size["mixed"]
    memory = {kind: limit_of(x) for kind, x in lowered.items()}
    assert memory["decode"] < memory["mixed"] / 2


def limit_of(lowered):
    """The VMEM that the kernel asks for."""
    (limit,) = set(re.findall(r"scoped_memory_configs[^}]*size\\22: (\d+)", lowered.as_text()))
    return int(limit)


def test_chips_share_the_heads_without_moving_pages(tpu_mesh):
    mesh = tpu_mesh("v6e", 4)
    compiled, pool_bytes = compile_call(mesh, has_sinks=True)
    assert compiled.memory_analysis().alias_size_in_bytes == pool_bytes // 4
    text = compiled.as_text()
    for moved in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert moved not in text
    # Each chip has two of the eight heads.
    assert "bf16[1000,2,64,256]" in text
    assert "bf16[1000,8,64,256]" not in text
