"""The TPU kernel in its interpreter on small twins of real shapes: heads, head dim, pages, window,
softcap, sinks and the sizes of blocks are real; the rows are few and short."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import ragged_paged_attention
from pallas_kernels.ragged_paged_attention.specs import SPECS

pytestmark = pytest.mark.interpreted


def twin(spec):
    """A decode row of two blocks, or beyond its window, a prompt, a chunk, and an idle slot."""
    longest = max(spec.sliding_window or 0, 1024) + 77
    rows = ((1, longest), (20, 20), (5, 70))
    return replace(spec, rows=rows, max_len=longest, num_slots=4, num_tokens=32, layers=1)


TWINS = {twin(spec): name for name, spec in reversed(SPECS.items())}


@pytest.mark.parametrize("spec", TWINS, ids=TWINS.values())
def test_tpu_equals_the_reference_on_real_heads_without_a_race(
    spec, batch_of, assert_close, in_layout_of, has_raced
):
    batch = batch_of(
        spec.rows,
        num_tokens=spec.tokens,
        num_slots=spec.slots,
        num_kv_heads=spec.num_kv_heads,
        group_size=spec.num_heads // spec.num_kv_heads,
        head_dim=spec.head_dim,
        page_size=spec.page_size,
        pages_per_row=spec.pages_per_row,
        pages_dtype=spec.pages_dtype,
        q_dtype="bfloat16",
    )
    options = {"sliding_window": spec.sliding_window, "logit_softcap": spec.logit_softcap}
    if spec.has_sinks:
        options["sinks_N"] = jnp.linspace(-1, 1, spec.num_heads, dtype=jnp.float32)

    def attend(implementation, interpret):
        pages = in_layout_of(implementation, batch.kv_pages)
        # The interpreter calls back into Python, and must find the threads of the CPU free.
        arguments = jax.block_until_ready(batch.where(kv_pages=pages).arguments)
        call = jax.jit(
            lambda *a: ragged_paged_attention(
                *a,
                scale=spec.head_dim**-0.5,
                implementation=implementation,
                interpret=interpret,
                **options,
            )
        )
        out, _ = jax.block_until_ready(call(*arguments))
        return np.asarray(out, np.float32)

    out = attend("tpu", pltpu.InterpretParams(detect_races=True))
    assert not has_raced()
    assert_close(out, attend("reference", False), "bfloat16")
