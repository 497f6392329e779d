"""What inspect says equals what loading finds."""

import jax
import numpy as np
import pytest

from jaxinfer.cache import init_cache, page_bytes
from jaxinfer.engine.limits import CacheGroup
from jaxinfer.errors import InvalidParameter
from jaxinfer.llm.facts import model_facts
from jaxinfer.llm.opening import open_model
from jaxinfer.models.loading import dummy_model
from sharding import make_mesh
from tests.llm.tiny_model import BOS, EOS


@pytest.fixture
def opened(tiny_directory):
    return open_model(tiny_directory, load_format="dummy")


def test_parameters_and_bytes_are_those_of_the_loaded_model(opened):
    model = dummy_model(opened.config, mesh=make_mesh(), dtype="bfloat16")
    facts = model_facts(opened)
    assert facts.num_params == model.num_params
    assert facts.weight_bytes["bfloat16"] == model.weight_bytes
    assert facts.weight_bytes["float32"] == 2 * model.weight_bytes


def test_pages_are_those_of_the_cache(opened):
    facts = model_facts(opened, kv_dtype="bfloat16", page_size=8)
    assert tuple(group.page_bytes for group in facts.groups) == page_bytes(
        opened.config, 8, "bfloat16"
    )
    assert facts.groups[0].kv_bytes_per_token == 2 * 2 * 2 * 8 * 2


def test_the_longest_context_fills_the_memory(opened):
    free = model_facts(opened, page_size=4)
    page, weights = free.groups[0].page_bytes, free.weight_bytes[free.dtype]
    assert free.longest_context is None

    def longest(nbytes):
        return model_facts(opened, page_size=4, memory_bytes=nbytes).longest_context

    assert longest(weights + 3 * page) == 8  # the first page of a pool is never used
    assert longest(weights + 3 * page - 1) == 4
    assert longest(weights) == 0
    assert longest(10 * weights + 10**9) == free.max_len


def test_the_largest_batch_fills_the_memory(opened):
    free = model_facts(opened, page_size=4)
    page, weights = free.groups[0].page_bytes, free.weight_bytes[free.dtype]
    assert free.largest_batch is None

    def largest(nbytes, context):
        facts = model_facts(opened, page_size=4, memory_bytes=nbytes, context=context)
        assert (facts.context, facts.sequence_bytes) == (context, -(-context // 4) * page)
        return facts.largest_batch

    # The first page of a pool is never used; a sequence of 9 tokens takes three of the others.
    assert largest(weights + 10 * page, 9) == 3
    assert largest(weights + 10 * page - 1, 9) == 2
    assert largest(weights, 1) == 0
    assert largest(0, 1) == 0


@pytest.mark.parametrize("context", [0, -1, 10**9])
def test_a_context_that_the_model_was_not_made_for_is_refused(opened, context):
    with pytest.raises(InvalidParameter, match=f"context = {context} must be between 1 and the"):
        model_facts(opened, context=context)


def test_a_window_costs_no_more_however_long_the_context():
    opened = open_model("gemma3-270m", load_format="dummy")
    short, long = (model_facts(opened, page_size=64, context=n) for n in (1024, 32_768))
    full, window = short.groups
    # A window of 512 tokens touches at most nine pages of 64.
    assert short.sequence_bytes == 16 * full.page_bytes + 9 * window.page_bytes
    assert long.sequence_bytes == 512 * full.page_bytes + 9 * window.page_bytes
    # An engine of one slot keeps two windows and two pages each, and eight for a step's 512 tokens;
    # the first page of a pool is never used.
    pools = 513 * full.page_bytes + (1 + 2 * (8 + 2) + 8) * window.page_bytes
    memory = long.weight_bytes["bfloat16"] + pools
    facts = model_facts(opened, page_size=64, memory_bytes=memory)
    assert (facts.longest_context, facts.largest_batch) == (32_768, 1)
    less = model_facts(opened, page_size=64, memory_bytes=memory - 1)
    assert (less.longest_context, less.largest_batch) == (32_768 - 64, 0)


def test_a_token_uses_the_experts_it_goes_to():
    mixtral = model_facts(open_model("mixtral-8x7b", load_format="dummy"))
    an_expert = 3 * 4096 * 14_336
    assert mixtral.num_params - mixtral.num_active_params == 32 * 6 * an_expert
    llama = model_facts(open_model("llama-3.2-1b", load_format="dummy"))
    assert llama.num_active_params == llama.num_params


def test_layers_that_share_keys_and_values_cost_nothing():
    facts = model_facts(open_model("gemma3n-e4b", load_format="dummy"))
    assert [(group.num_layers, group.num_owners) for group in facts.groups] == [(7, 4), (28, 16)]
    assert [group.kv_bytes_per_token for group in facts.groups] == [
        2 * 2 * 256 * owners * 2 for owners in (4, 16)
    ]


@pytest.mark.parametrize("name", ["gemma3n-e2b", "gemma4-26b-a4b", "mixtral-8x7b"])
def test_what_a_sequence_costs_is_what_its_pools_hold(name):
    opened = open_model(name, load_format="dummy")
    facts = model_facts(opened, page_size=32, context=5000)
    pages = [CacheGroup(kind=g.kind, window=g.window, num_pages=2) for g in facts.groups]
    counts = tuple(group.pages_for(5000, 32) for group in pages)
    pools = jax.eval_shape(lambda: init_cache(opened.config, counts, 32, facts.kv_dtype))
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pools))
    assert facts.sequence_bytes == held


def test_windows_hold_no_more_than_they_see():
    opened = open_model("gemma3-270m", load_format="dummy")
    facts = model_facts(opened)
    assert [(group.kind, group.num_layers) for group in facts.groups] == [
        ("full", 3),
        ("window", 15),
    ]
    assert facts.tokenizer is None
    assert facts.num_params == 268_098_176


def test_the_tokenizer_is_described(opened):
    tokenizer = model_facts(opened).tokenizer
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids) == (BOS, (EOS,))
    assert tokenizer.has_chat_template
    assert not tokenizer.adds_bos
    assert np.dtype(model_facts(opened).dtype) == np.float32


@pytest.mark.parametrize("settings", [{"dtype": "int8"}, {"kv_dtype": "x"}, {"page_size": 0}])
def test_unknown_dtypes_and_sizes_are_refused(opened, settings):
    with pytest.raises(InvalidParameter, match="must be"):
        model_facts(opened, **settings)
