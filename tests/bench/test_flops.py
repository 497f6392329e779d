"""FLOPs of a prefill, counted in a closed form, are those counted position by position."""

from dataclasses import replace

import jax
import pytest

from jaxinfer.bench.flops import prefill_flops
from jaxinfer.models.model import blank_model
from jaxinfer.models.registry import model_config
from jaxinfer.presets import find_config
from sharding import make_mesh

LENGTH = 37


def counted(config, blank, batch_size):
    """By the definition: every kernel once a token, and every position that a query sees."""
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(blank.params):
        name = jax.tree_util.keystr(path)
        if leaf.ndim == 2 and "embed" not in name and "head" not in name:
            total += 2 * leaf.size * LENGTH
    total += 2 * config.vocab_size * config.width
    for layer in config.layers:
        spec = layer.attention
        for query in range(LENGTH):
            for key in range(query + 1):
                is_near = spec.window is None or query - key < spec.window
                is_same = spec.chunk is None or query // spec.chunk == key // spec.chunk
                total += 4 * spec.num_heads * spec.head_dim * (is_near and is_same)
    return batch_size * total


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("reach", [{}, {"window": 9}, {"window": 100}, {"chunk": 8}], ids=str)
def test_a_prefill_multiplies_each_token_by_each_kernel_and_sees_what_is_seen(is_tied, reach):
    config = model_config(find_config("smollm2-135m"))
    layers = tuple(replace(x, mixer=replace(x.attention, **reach)) for x in config.layers[:2])
    config = replace(config, layers=layers, tied_head=is_tied)
    blank = blank_model(config, mesh=make_mesh({"model": 1}))
    flops = prefill_flops(config, blank.num_active_params, batch_size=3, input_len=LENGTH)
    vectors = sum(leaf.size for leaf in jax.tree.leaves(blank.params) if leaf.ndim < 2)
    # Weights of norms count as parameters, though nothing is summed over them.
    assert flops - 2 * 3 * LENGTH * vectors == counted(config, blank, 3)
