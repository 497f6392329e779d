"""The kernels on small twins of the named shapes: rank, rotary part, pages and the sizes of blocks
are real."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import gather_latent_pages, init_latent_pages, latent_attention
from pallas_kernels.latent_attention.specs import SPECS
from tests.pallas_kernels.on_chip import interpret_of
from tests.pallas_kernels.twins import one_for_each_program, small_latent, zones_of

pytestmark = pytest.mark.interpreted

IN_CI = {"deepseek-v3-decode", "deepseek-v2-lite-prefill", "deepseek-v2-lite-mixed"}
"""The three kinds of program, with many heads and with few."""


def twins(positions):
    return one_for_each_program(
        {name: small_latent(spec, positions) for name, spec in SPECS.items()}, IN_CI
    )


@pytest.fixture
def check(batch_of, assert_close, assert_same_pages):
    def equals_the_reference(spec, implementation, interpret):
        interpret = interpret_of(implementation, interpret)
        sizes = {
            "num_heads": spec.num_heads,
            "latent_rank": spec.latent_rank,
            "rope_dim": spec.rope_dim,
            "page_size": spec.page_size,
            "pages_dtype": spec.pages_dtype,
        }
        batch = batch_of(
            spec.rows,
            num_tokens=spec.tokens,
            num_slots=spec.slots,
            pages_per_row=spec.pages_per_row,
            q_dtype="bfloat16",
            **sizes,
        )
        pool = batch.latent_pages
        ids = jnp.arange(1, pool.num_pages, dtype=jnp.int32)

        def attend(implementation, interpret):
            pages = init_latent_pages(
                pool.num_pages,
                pool.page_size,
                pool.latent_rank,
                pool.rope_dim,
                pool.dtype,
                implementation=implementation,
            ).write(ids, *gather_latent_pages(pool, ids))
            # The interpreter calls back into Python, and must find the threads of the CPU free.
            arguments = jax.block_until_ready(batch.on(pages).arguments[:-1])
            call = jax.jit(
                lambda *a: latent_attention(
                    *a,
                    zones_of(spec),
                    scale=spec.scale,
                    implementation=implementation,
                    interpret=interpret,
                )
            )
            out, pages = jax.block_until_ready(call(*arguments))
            stored = jax.block_until_ready(gather_latent_pages(pages, ids))
            return np.asarray(out, np.float32), stored

        out, stored = attend(implementation, interpret)
        expected, expected_stored = attend("reference", False)
        assert_close(out, expected, "bfloat16")
        assert_same_pages(stored, expected_stored)

    return equals_the_reference


@pytest.mark.parametrize("spec", twins(512))
def test_tpu_equals_the_reference_on_a_twin_without_a_race(spec, check, has_raced):
    check(spec, "tpu", pltpu.InterpretParams(detect_races=True))
    assert not has_raced()


@pytest.mark.parametrize("spec", twins(128))
def test_gpu_equals_the_reference_on_a_twin(spec, check):
    check(spec, "gpu", True)
