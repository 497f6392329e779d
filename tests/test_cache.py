"""The cache: which layers share page ids, who owns a pool, and what a page costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.cache import (
    copy_pages,
    group_of_layer,
    init_cache,
    layer_groups,
    page_bytes,
    page_shardings,
)
from jaxinfer.errors import ConfigError
from jaxinfer.models.registry import model_config
from jaxinfer.presets import find_config
from sharding import make_mesh
from tests.models.golden_case import GoldenCase

LLAMA = {**GoldenCase("llama").config, "num_hidden_layers": 12}


def array_bytes(cache) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(cache))


@pytest.mark.parametrize("factor", [2, 3, 4, 12])
def test_pools_shrink_by_the_sharing_factor(factor):
    shared = model_config({**LLAMA, "kv_sharing_factor": factor})
    own = init_cache(model_config(LLAMA), (5,), 8, "float32")
    cache = init_cache(shared, (5,), 8, "float32")
    assert array_bytes(own) == factor * array_bytes(cache)
    assert [pages is None for pages in cache] == [i % factor > 0 for i in range(12)]


def test_a_last_run_may_be_shorter_than_the_factor():
    config = model_config({**LLAMA, "kv_sharing_factor": 5})
    assert [layer.kv_from for layer in config.layers if layer.kv_from is not None] == (
        [0] * 4 + [5] * 4 + [10]
    )


def test_a_layer_that_shares_belongs_to_the_group_of_its_owner():
    config = model_config(GoldenCase("gemma3n").config)
    assert [layer.kv_from for layer in config.layers] == [None, None, None, 1, 2]
    full, window = layer_groups(config)
    assert (full.window, full.layers) == (None, (2, 4))
    assert (window.window, window.layers) == (16, (0, 1, 3))
    assert group_of_layer(config) == (1, 1, 0, 1, 0)


@pytest.mark.parametrize(
    ("name", "per_token"),
    [
        # kv heads times head dim times layers with pages, of each group; a key and a value each.
        ("llama-3.1-8b", (8 * 128 * 32,)),
        ("gemma3-270m", (1 * 256 * 3, 1 * 256 * 15)),
        ("gemma3n-e4b", (2 * 256 * 4, 2 * 256 * 16)),
        ("gemma4-e2b", (1 * 512 * 3, 1 * 256 * 12)),
        ("gemma4-31b", (4 * 512 * 10, 16 * 256 * 50)),
    ],
)
def test_a_page_costs_what_the_arrays_of_a_pool_hold(name, per_token):
    config = model_config(find_config(name))
    sizes = page_bytes(config, 16, "bfloat16")
    assert sizes == tuple(16 * 2 * 2 * numbers for numbers in per_token)
    counts = tuple(range(3, 3 + len(sizes)))
    pools = jax.eval_shape(lambda: init_cache(config, counts, 16, "bfloat16"))
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pools))
    assert held == sum(count * size for count, size in zip(counts, sizes, strict=True))


def test_pages_are_copied_where_there_are_some():
    config = model_config({**LLAMA, "num_hidden_layers": 3, "kv_sharing_factor": 2})
    numbered = jax.tree.map(
        lambda leaf: jnp.arange(leaf.size, dtype=leaf.dtype).reshape(leaf.shape),
        init_cache(config, (4,), 8, "float32"),
    )
    copied = copy_pages(config, numbered, jnp.asarray([[1, 0]]), jnp.asarray([[3, 0]]))
    assert [pages is None for pages in copied] == [False, True, False]
    for before, after in zip(numbered, copied, strict=True):
        if before is not None:
            changed = [
                np.asarray(old != new).any()
                for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
            ]
            assert any(changed)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("qwen3-30b-a3b", "num_kv_heads = 4 does not divide over 3 devices"),
        ("deepseek-v2-lite", "num_heads = 16 does not divide over 3 devices"),
    ],
)
def test_heads_that_do_not_divide_over_the_devices_are_refused(four_devices, name, message):
    config = model_config(find_config(name))
    with pytest.raises(ConfigError, match=message):
        page_shardings(config, make_mesh({"model": 3}))
    # A pool of two pages: of heads each device has its part, of latents the whole.
    pools = jax.eval_shape(lambda: init_cache(config, (2,), 16, "bfloat16"))
    leaf, where = jax.tree.leaves(pools[0])[0], page_shardings(config, make_mesh({"model": 4}))[0]
    parts = 4 if "kv" in message else 1
    assert np.prod(where.shard_shape(leaf.shape)) * parts == leaf.size
