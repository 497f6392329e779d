"""What inspect says equals what loading finds."""

import numpy as np
import pytest

from jaxinfer.cache import page_bytes
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
