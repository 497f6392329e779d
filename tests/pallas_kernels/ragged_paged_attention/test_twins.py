"""The kernels on small twins of the named shapes: head dims, query heads of a kv head, pages,
dtypes, windows, softcaps, sinks and the sizes of blocks are real."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import ragged_paged_attention
from pallas_kernels.ragged_paged_attention import gpu_plan
from pallas_kernels.ragged_paged_attention.specs import ACCELERATOR_SPECS, SPECS
from tests.pallas_kernels.on_chip import interpret_of
from tests.pallas_kernels.twins import one_for_each_program, small_ragged, zones_of

pytestmark = pytest.mark.interpreted

NAMED = {**SPECS, **ACCELERATOR_SPECS}
IN_CI = {
    "smollm2-prefill-512",
    "gemma3-270m-local",
    "gpt-oss-window-sinks",
    "gemma2-softcap",
    "llama3-8b-decode-64-fp8",
}
"""All head dims, window, sinks, softcap, fp8 and the three kinds of program."""


def twins(positions):
    return one_for_each_program(
        {name: small_ragged(spec, positions) for name, spec in NAMED.items()}, IN_CI
    )


@pytest.fixture
def check(batch_of, in_layout_of, assert_close):
    def equals_the_reference(spec, implementation, interpret):
        interpret = interpret_of(implementation, interpret)
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
            arguments = jax.block_until_ready(batch.where(kv_pages=pages).arguments[:-1])
            call = jax.jit(
                lambda *a: ragged_paged_attention(
                    *a,
                    zones_of(spec),
                    scale=spec.head_dim**-0.5,
                    implementation=implementation,
                    interpret=interpret,
                    **options,
                )
            )
            out, pages = jax.block_until_ready(call(*arguments))
            keys_values = jax.block_until_ready(in_layout_of("reference", pages))
            return np.asarray(out, np.float32), keys_values

        out, pages = attend(implementation, interpret)
        expected, expected_pages = attend("reference", False)
        assert_close(out, expected, "bfloat16")
        for leaf, wanted in zip(
            jax.tree.leaves(pages), jax.tree.leaves(expected_pages), strict=True
        ):
            # As numbers, for a NaN may become another NaN; nobody owns page 0.
            np.testing.assert_array_equal(
                np.asarray(leaf[1:], np.float32), np.asarray(wanted[1:], np.float32)
            )

    return equals_the_reference


@pytest.mark.parametrize("spec", twins(1024))
def test_tpu_equals_the_reference_on_a_twin_without_a_race(spec, check, has_raced):
    check(spec, "tpu", pltpu.InterpretParams(detect_races=True))
    assert not has_raced()


def test_thousands_of_pages_of_a_row_are_all_seen(check):
    sizes = {"num_heads": 1, "num_kv_heads": 1, "head_dim": 64, "page_size": 16}
    rows = {"rows": ((1, 33_001), (1, 40)), "max_len": 33_600}
    check(replace(SPECS["llama3-8b-decode"], **sizes, **rows), "tpu", True)


@pytest.mark.parametrize("spec", twins(128))
def test_gpu_equals_the_reference_on_a_twin(spec, check, monkeypatch):
    monkeypatch.setattr(gpu_plan, "INTERPRETED_SMS", 1)
    check(spec, "gpu", True)
