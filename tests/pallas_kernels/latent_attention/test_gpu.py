"""The Hopper kernel in the interpreter of Mosaic GPU, against the meaning, on small batches."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import gather_latent_pages

pytest.importorskip("absl", reason="the interpreter of Mosaic GPU needs absl-py")

pytestmark = pytest.mark.interpreted

ROWS = {
    "decode": [(1, 70), (1, 0), (1, 1), (1, 200), (1, 64)],
    "prompt and chunk": [(9, 9), (3, 130)],
    "mixed": [(1, 129), (0, 0), (12, 12), (5, 80), (1, 30)],
}
OPTIONS = {
    "bidirectional": {"causal": False},
    "unwritten": {"update_kv_cache": False},
    "bidirectional, unwritten": {"causal": False, "update_kv_cache": False},
}


def small(batch_of, rows, **options):
    sizes = {
        "latent_rank": 256,
        "rope_dim": 64,
        "page_size": 64,
        "pages_per_row": 4,
        "num_slots": 5,
        "num_heads": 6,
    }
    return batch_of(rows, **{"pages_dtype": "bfloat16", "q_dtype": "bfloat16", **sizes, **options})


@pytest.fixture
def check(attend, assert_close, assert_same_pages):
    def equals_the_reference(batch, dtype="bfloat16", **options):
        expected, expected_pages = attend("reference", batch, **options)
        out, pages = attend("gpu", batch, **options)
        assert_close(out, expected, dtype)
        ids = jnp.arange(1, pages.num_pages, dtype=jnp.int32)  # Nobody owns page 0.
        assert_same_pages(*(gather_latent_pages(x, ids) for x in (pages, expected_pages)))

    return equals_the_reference


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_gpu_equals_the_reference(rows, batch_of, check):
    check(small(batch_of, rows))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option(options, batch_of, check):
    check(small(batch_of, ROWS["mixed"]), **options)
