"""Writing alone is what attending writes."""

import jax
import numpy as np
import pytest

from pallas_kernels import NoImplementation, init_latent_pages, latent_attention, write_latents
from pallas_kernels.latent_attention import page_sizes
from tests.pallas_kernels.on_chip import interpret_of

ROWS = [(1, 9), (5, 5), (3, 0), (4, 12)]


@pytest.mark.parametrize(("pages_dtype", "page_size"), [("float32", 8), ("bfloat16", 16)])
def test_writing_alone_is_what_attending_writes(
    pages_dtype, page_size, batch_of, assert_same_pages
):
    batch = batch_of(ROWS, pages_dtype=pages_dtype, page_size=page_size)
    q_latent, q_rope, *arguments = batch.arguments
    _, expected = latent_attention(
        q_latent, q_rope, *arguments, scale=0.25, implementation="reference"
    )
    assert_same_pages(jax.jit(write_latents)(*arguments), expected)


@pytest.mark.parametrize(
    "implementation", ["gpu", pytest.param("tpu", marks=pytest.mark.interpreted)]
)
def test_other_layouts_are_written_to_as_well(implementation, batch_of):
    interpret = implementation == "tpu" and interpret_of("tpu")
    sizes = {"gpu": (64, 256, 32), "tpu": (16, 16, 8)}[implementation]
    page_size, rank, rope = sizes
    batch = batch_of(
        ROWS, pages_dtype="bfloat16", page_size=page_size, latent_rank=rank, rope_dim=rope
    )
    _, _, *arguments = batch.arguments
    expected = write_latents(*arguments)
    ids = np.arange(expected.num_pages, dtype=np.int32)
    everywhere = np.ones(ids.shape, bool)
    blank = init_latent_pages(ids.size, *sizes, "bfloat16", implementation=implementation)
    pages = blank.write(ids, *arguments[2].read(ids, everywhere))
    written = write_latents(*arguments[:2], pages, *arguments[3:], interpret=interpret)
    for part, wanted in zip(
        written.read(ids, everywhere), expected.read(ids, everywhere), strict=True
    ):
        np.testing.assert_array_equal(
            np.asarray(part).view(np.uint16), np.asarray(wanted).view(np.uint16)
        )


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="its own chip may be here")
def test_pages_of_a_tpu_are_not_written_where_there_is_none(batch_of):
    _, _, *arguments = batch_of(ROWS).arguments
    arguments[2] = init_latent_pages(73, 8, 16, 8, "float32", implementation="tpu")
    here = r"cannot run as tpu here: the chip is cpu \(cpu\), not a TPU.*interpret=True"
    with pytest.raises(NoImplementation, match=f"write_latents {here}"):
        write_latents(*arguments)


def test_plain_pages_may_have_any_of_the_usual_sizes():
    assert page_sizes(16, 8, "float32") == (8, 16, 32, 64, 128, 256)
