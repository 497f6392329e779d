"""The TPU kernel compiled by the real compiler, for a chip that is not here: what no spec has. The
specs are compiled in ``test_compile_specs.py``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pallas_kernels import init_latent_pages, latent_attention, write_latents
from pallas_kernels.latent_attention import tpu_tuning
from pallas_kernels.latent_attention.specs import Spec

SMALL = Spec(num_heads=16, rows=((1, 900), (40, 40)), max_len=1024, num_slots=8, num_tokens=64)
DECODE = Spec(num_heads=16, rows=((1, 900),) * 8, max_len=1024)
SHAPES = {
    "float32": {"pages_dtype": "float32", "q_dtype": "float32"},
    "float16 queries": {"q_dtype": "float16"},
    "e4m3": {"pages_dtype": "float8_e4m3fn"},
    "e5m2": {"pages_dtype": "float8_e5m2", "page_size": 32},
    "unwritten": {"update_kv_cache": False, "causal": False},
    "unwritten e4m3": {"update_kv_cache": False, "pages_dtype": "float8_e4m3fn"},
    "without latents": {"has_new": False},
    "small pages": {"page_size": 16},
    "large pages": {"page_size": 256},
    "40 heads of rank 256": {"num_heads": 40, "latent_rank": 256, "rope_dim": 32},
    "5 heads of rank 96": {"num_heads": 5, "latent_rank": 96, "rope_dim": 64},
    "256 heads of rank 1920": {
        "num_heads": 256,
        "latent_rank": 1920,
        "rope_dim": 128,
        "pages_dtype": "float32",
        "q_dtype": "float32",
    },
    # A table of half a million entries, more than the scalar memory holds.
    "a large table": {"num_slots": 128, "max_len": 2**17, "page_size": 32},
}


def compile_call(
    mesh,
    spec,
    *,
    num_pages=1_000,
    pages_dtype=None,
    q_dtype="bfloat16",
    has_new=True,
    writes_only=False,
    zones=None,
    **options,
):
    """The compiled call on one chip, and the bytes of its pool."""
    here = NamedSharding(mesh, PartitionSpec())
    rank, rope = spec.latent_rank, spec.rope_dim

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=here)

    pool = jax.eval_shape(
        lambda: init_latent_pages(
            num_pages,
            spec.page_size,
            rank,
            rope,
            pages_dtype or spec.pages_dtype,
            implementation="tpu",
        )
    )
    pool = jax.tree.map(lambda leaf: array(leaf.dtype, *leaf.shape), pool)

    def call(pages, q_latent, q_rope, latent, rope, kv_lens, table, borders, distribution):
        return latent_attention(
            q_latent,
            q_rope,
            latent,
            rope,
            pages,
            kv_lens,
            table,
            borders,
            distribution if zones is None else np.asarray(zones, np.int32),
            scale=spec.scale,
            implementation="tpu",
            **options,
        )

    def write(pages, q_latent, q_rope, latent, rope, *rows):
        return write_latents(latent, rope, pages, *rows)

    arguments = (
        pool,
        array(q_dtype, spec.tokens, spec.num_heads, rank),
        array(q_dtype, spec.tokens, spec.num_heads, rope),
        array(q_dtype, spec.tokens, rank) if has_new else None,
        array(q_dtype, spec.tokens, rope) if has_new else None,
        array("int32", spec.slots),
        array("int32", spec.slots, spec.pages_per_row),
        array("int32", spec.slots + 1),
        array("int32", 3),
    )
    with jax.set_mesh(mesh):
        run = write if writes_only else call
        compiled = jax.jit(run, donate_argnums=0).lower(*arguments).compile()
    return compiled, sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pool))


def with_changes(spec, shape):
    """The spec with the changes that are its own, and the rest."""
    own = {name: x for name, x in shape.items() if name in spec.__dataclass_fields__}
    rest = {name: x for name, x in shape.items() if name not in own}
    return type(spec)(**{**vars(spec), **own}), rest


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_shape_compiles_for_v6e_and_writes_in_place(shape, tpu_mesh):
    spec, rest = with_changes(SMALL, shape)
    compiled, pool_bytes = compile_call(tpu_mesh("v6e"), spec, **rest)
    assert compiled.memory_analysis().alias_size_in_bytes == pool_bytes


@pytest.mark.parametrize("name", ["e4m3", "256 heads of rank 1920"])
def test_writing_alone_is_one_kernel_in_place(name, tpu_mesh):
    spec, rest = with_changes(SMALL, SHAPES[name])
    compiled, pool_bytes = compile_call(tpu_mesh("v6e"), spec, writes_only=True, **rest)
    assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 1
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes == pool_bytes
    # New positions in tiles, of which every row touches two more than it fills.
    tiles = (spec.tokens + 2 * 32 * spec.slots) * pool_bytes / (1_000 * spec.page_size)
    assert memory.temp_size_in_bytes < 2 * tiles + 2**20


@pytest.mark.parametrize("name", ["unwritten", "unwritten e4m3", "40 heads of rank 256"])
def test_the_vmem_that_is_counted_suffices(name, tpu_mesh, monkeypatch):
    """The compiler refuses a kernel that takes more than it asks for."""
    asked, tiles_for = [], tpu_tuning.tiles_for

    def counting(problem):
        tiles = tiles_for(problem)
        asked.append(tpu_tuning.vmem_bytes(problem, tiles))
        monkeypatch.setattr(tpu_tuning, "VMEM_BYTES", asked[-1])
        return tiles

    spec, rest = with_changes(SMALL, SHAPES[name])
    mesh = tpu_mesh("v6e")
    with monkeypatch.context() as patch:
        patch.setattr(tpu_tuning, "tiles_for", counting)
        jax.clear_caches()  # Of kernels that were traced with the other limit.
        compile_call(mesh, spec, **rest)
    jax.clear_caches()
    assert 0 < asked[0] < 48 * 2**20


def test_a_decode_program_has_no_long_rows(tpu_mesh):
    whole, _ = compile_call(tpu_mesh("v6e"), DECODE)
    decode, _ = compile_call(tpu_mesh("v6e"), DECODE, zones=(8, 8, 8))
    sizes = [x.memory_analysis().generated_code_size_in_bytes for x in (whole, decode)]
    assert 0 < sizes[1] < sizes[0]


@pytest.mark.parametrize("pages_dtype", ["float32", "float8_e4m3fn"])
def test_temporaries_do_not_grow_with_the_pool(pages_dtype, tpu_mesh):
    few, few_bytes = compile_call(tpu_mesh("v6e"), DECODE, pages_dtype=pages_dtype)
    many, many_bytes = compile_call(
        tpu_mesh("v6e"), DECODE, pages_dtype=pages_dtype, num_pages=10_000
    )
    # The compiler keeps more or fewer small arrays in VMEM; a copy of the pool would be all of it.
    growth = many.memory_analysis().temp_size_in_bytes - few.memory_analysis().temp_size_in_bytes
    assert growth < (many_bytes - few_bytes) / 100
