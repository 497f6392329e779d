"""The Hopper kernel through the real compilers, for a chip that is not here (sm_90a): what no spec
has. The specs are compiled in ``test_compile_specs.py``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pallas_kernels import NoImplementation, init_latent_pages, latent_attention
from pallas_kernels.latent_attention import gpu_tuning
from tests.chips import REPORT


def compiled(
    hopper_mesh,
    *,
    num_pages=200,
    num_heads=16,
    latent_rank=512,
    rope_dim=64,
    page_size=64,
    pages_dtype="bfloat16",
    q_dtype="bfloat16",
    slots=8,
    pages_per_row=32,
    tokens=8,
    decode=True,
    has_new=True,
    **options,
):
    """One call, compiled; ``decode`` or else a program for prompts only."""
    here = NamedSharding(hopper_mesh, PartitionSpec())
    sizes = (num_pages, page_size, latent_rank, rope_dim)
    pages = jax.eval_shape(lambda: init_latent_pages(*sizes, pages_dtype, "gpu"))
    kinds = np.array([slots if decode else 0, slots, slots], np.int32)

    def call(pages, q_latent, q_rope, latent, rope, *rows):
        return latent_attention(
            q_latent,
            q_rope,
            latent,
            rope,
            pages,
            *rows,
            kinds,
            scale=0.1,
            implementation="gpu",
            **options,
        )

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))

    shapes = (
        pages,
        array(q_dtype, tokens, num_heads, latent_rank),
        array(q_dtype, tokens, num_heads, rope_dim),
        array(q_dtype, tokens, latent_rank) if has_new else None,
        array(q_dtype, tokens, rope_dim) if has_new else None,
        array("int32", slots),
        array("int32", slots, pages_per_row),
        array("int32", slots + 1),
    )
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)
    return jax.jit(call, donate_argnums=0, out_shardings=here).lower(*placed).compile()


SHAPES = {
    "float16 pages of 128, bidirectional": {
        "pages_dtype": "float16",
        "q_dtype": "float32",
        "page_size": 128,
        "causal": False,
    },
    "minicpm3": {"num_heads": 40, "latent_rank": 256, "rope_dim": 32, "page_size": 256},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("decode", [True, False], ids=["decode", "prefill"])
def test_it_compiles_for_hopper_and_keeps_its_numbers_in_registers(
    decode, shape, hopper_mesh, monkeypatch, capfd
):
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTXAS", "1")
    compiled(hopper_mesh, decode=decode, tokens=8 if decode else 512, **shape)
    said = "".join(capfd.readouterr())
    reports = [tuple(map(int, found)) for found in REPORT.findall(said)]
    assert len(reports) == 1, said
    assert reports[0][:2] == (0, 0), f"spill stores, spill loads, registers: {reports[0]}"


PROGRAMS = {
    "prefill": {"decode": False},
    "unwritten decode": {"update_kv_cache": False},
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_no_step_copies_the_pool(program, hopper_mesh):
    small, large = (
        compiled(hopper_mesh, num_pages=pages, **program).memory_analysis()
        for pages in (1_000, 20_000)
    )
    assert large.temp_size_in_bytes == small.temp_size_in_bytes
    assert large.alias_size_in_bytes == 20_000 * 64 * (512 + 64) * 2


def test_a_large_table_takes_no_more_than_itself(hopper_mesh):
    sizes = {"slots": 128, "tokens": 128}
    narrow, wide = (
        compiled(hopper_mesh, pages_per_row=pages, **sizes).memory_analysis()
        for pages in (32, 4096)
    )
    assert wide.alias_size_in_bytes == narrow.alias_size_in_bytes
    assert wide.temp_size_in_bytes - narrow.temp_size_in_bytes <= 128 * 4096 * 4


def test_a_read_only_call_compiles(hopper_mesh):
    memory = compiled(hopper_mesh, has_new=False).memory_analysis()
    assert memory.alias_size_in_bytes == 200 * 64 * (512 + 64) * 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"queries": 3}, r"queries = 3 is not a power of two"),
        ({"rows": 12}, r"rows = 12 is not a multiple of 8 up to 64"),
        ({"stages": 1}, r"stages = 1 is not one of 2 .. 6"),
        ({"sum_registers": 176}, r"registers = 128 \* 528 are more than 65536"),
    ],
)
def test_tiles_that_a_multiprocessor_cannot_hold_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        gpu_tuning.Tiles(**{"queries": 1, "rows": 16, "stages": 2, **wrong})


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, 16, 512, 64, "bfloat16"), r"page_size = 16 is not one of 64, 128, 256"),
        ((3, 64, 384, 64, "bfloat16"), r"latent_rank = 384 is not one of 256, 512"),
        ((3, 64, 512, 128, "bfloat16"), r"rope_dim = 128 is not one of 32, 64"),
        ((3, 64, 512, 64, "float8_e4m3fn"), r"pages = float8_e4m3fn is not one of bfloat16"),
    ],
)
def test_pages_that_the_kernel_cannot_read_are_refused_by_name(sizes, message):
    with pytest.raises(NoImplementation, match=message):
        init_latent_pages(*sizes, implementation="gpu")
