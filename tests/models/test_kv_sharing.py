"""Layers that read another one's keys and values: refusals, parameters, and the same numbers."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxinfer.batch import Ragged
from jaxinfer.cache import init_cache
from jaxinfer.config import ModelConfig, shared_kv
from jaxinfer.errors import ConfigError
from jaxinfer.models.loading import load_model
from jaxinfer.models.registry import family_for, model_config
from jaxinfer.models.weights import recipes
from sharding import make_mesh
from tests.models.dense_forward import dense_logits
from tests.models.dict_source import DictSource
from tests.models.golden_case import GoldenCase
from tests.models.reference_forward import logits_of
from tests.models.test_families_parity import FLOAT32

LLAMA = GoldenCase("llama")
CONFIG = model_config({**LLAMA.config, "num_hidden_layers": 6})
KV_PARTS = ("self_attn.k_proj", "self_attn.v_proj")


def with_kv_from(*owners: object) -> ModelConfig:
    layers = (replace(CONFIG.layers[0], kv_from=owner) for owner in owners)
    return replace(CONFIG, layers=tuple(layers))


@pytest.mark.parametrize(
    ("owners", "message"),
    [
        ((None, 2, None), "kv_from of layer 1 = 2 .*the number of an earlier layer"),
        ((None, 1), "kv_from of layer 1 = 1 .*the number of an earlier layer"),
        ((0, None), "kv_from of layer 0 = 0 .*the number of an earlier layer"),
        ((None, -1), "kv_from of layer 1 = -1"),
        ((None, True), "kv_from of layer 1 = True"),
        ((None, 0.0), "kv_from of layer 1 = 0.0"),
        ((None, 7), "kv_from of layer 1 = 7"),
        ((None, 0, 1), "kv_from of layer 2 = 1 .*with pages of its own"),
    ],
)
def test_a_map_that_leads_to_no_pages_is_refused_by_the_name_of_the_field(owners, message):
    with pytest.raises(ConfigError, match=message):
        with_kv_from(*owners)


@pytest.mark.parametrize(("field", "value"), [("num_kv_heads", 1), ("head_dim", 16), ("window", 8)])
def test_keys_and_values_that_do_not_fit_are_refused(field, value):
    first, *rest = with_kv_from(None, 0).layers
    other = replace(first, mixer=replace(first.mixer, **{field: value, "rope": None}))
    with pytest.raises(ConfigError, match=f"kv_from of layer 1 = 0 .*a layer with {field} = "):
        replace(CONFIG, layers=(other, *rest))


@pytest.mark.parametrize("factor", [0, -2, 1.5, True, "2", 99])
def test_a_factor_that_is_none_is_refused(factor):
    with pytest.raises(ConfigError, match="kv_sharing_factor"):
        model_config({**LLAMA.config, "kv_sharing_factor": factor})
    with pytest.raises(ConfigError, match="kv_sharing_factor = 0"):
        shared_kv(CONFIG.layers, 0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("phi3", "1 where queries, keys and values are one tensor"),
        ("gpt2", "1 where queries, keys and values are one tensor"),
        ("gpt_neox", "1 where queries, keys and values are one tensor"),
        ("deepseek_v3", "1 where layers hold latents"),
        ("gemma3n", "1 beside num_kv_shared_layers"),
        ("gemma2", "one that leaves out layer 1, for layer 0 has another kind of pages"),
    ],
)
def test_what_cannot_share_is_refused_by_the_name_of_the_field(name, message):
    with pytest.raises(ConfigError, match=f"kv_sharing_factor = 2 .*{message}"):
        model_config({**GoldenCase(name).config, "kv_sharing_factor": 2})


@pytest.mark.parametrize(
    "name",
    ["qwen3", "glm4", "stablelm_parallel", "starcoder2", "phi", "qwen3_moe", "hunyuan", "cohere"],
)
def test_layers_of_other_families_share_as_well(name):
    case = GoldenCase(name)
    config = {**case.config, "kv_sharing_factor": 2}
    unread = (
        f"layers.1.self_attn.{part}" for part in ("k_proj", "v_proj", "k_norm", "k_layernorm")
    )
    unread = (*unread, "layers.1.self_attn.key_layernorm")
    shapes = {n: s for n, s in case.shapes.items() if not any(part in n for part in unread)}
    model = load_model(DictSource(config, shapes), mesh=make_mesh())
    assert [layer.kv_from for layer in model.config.layers[:2]] == [None, 0]
    assert not {"k", "v", "k_norm"} & set(model.params["layers"][1]["mixer"])


def shared_case(factor: int, num_layers: int = 6) -> DictSource:
    """A checkpoint that has no tensor of keys and values that nobody reads."""
    config = {**LLAMA.config, "num_hidden_layers": num_layers, "kv_sharing_factor": factor}
    of_layer = {
        name.replace("layers.0.", f"layers.{i}."): shape
        for name, shape in LLAMA.shapes.items()
        if "layers.0." in name
        for i in range(num_layers)
        if i % factor == 0 or not any(part in name for part in KV_PARTS)
    }
    outer = {name: shape for name, shape in LLAMA.shapes.items() if "layers." not in name}
    return DictSource(config, outer | of_layer)


@pytest.mark.parametrize("factor", [2, 3])
def test_layers_that_share_compute_what_their_spec_means(factor):
    source = shared_case(factor)
    model = load_model(source, mesh=make_mesh(), dtype="float32")
    rules = recipes(family_for(source.config), model.config, source.tensors)
    params = {rule.target: rule.read(source) for rule in rules}
    sequences = [sequence.tokens for sequence in LLAMA.sequences]
    found = logits_of(model, sequences)
    for tokens_T, logits_TV in zip(sequences, found, strict=True):
        expected_TV = dense_logits(model.config, params, tokens_T, model.config.max_len)
        np.testing.assert_allclose(logits_TV, expected_TV, **FLOAT32)


def test_a_layer_that_shares_has_no_parameters_of_keys_and_values():
    model = load_model(shared_case(3), mesh=make_mesh())
    mixers = [model.params["layers"][i]["mixer"] for i in range(6)]
    assert [sorted(mixer) for mixer in mixers] == [
        ["k", "o", "q", "v"],
        ["o", "q"],
        ["o", "q"],
    ] * 2
    gemma = load_model(GoldenCase("gemma3n").source, mesh=make_mesh())
    assert sorted(gemma.params["layers"][3]["mixer"]) == ["o", "q", "q_norm"]
    assert sorted(gemma.params["layers"][1]["mixer"]) == ["k", "k_norm", "o", "q", "q_norm", "v"]


def test_pools_that_several_layers_read_are_updated_in_place():
    model = load_model(shared_case(2, num_layers=2), mesh=make_mesh(), dtype="float32")
    tokens_T = jnp.zeros(2, jnp.int32)
    tables = (jnp.asarray([[1], [2]], jnp.int32),)
    ragged = Ragged(
        kv_lens_S=jnp.asarray([3, 3], jnp.int32),
        cu_q_lens_S1=jnp.arange(3, dtype=jnp.int32),
        distribution_3=None,
        fixed_distribution=(2, 2, 2),
    )

    def step(params, cache):
        return model.merge(params)(tokens_T, tokens_T + 2, cache, tables, ragged)

    def memory(num_pages):
        cache = jax.eval_shape(lambda: init_cache(model.config, (num_pages,), 8, "float32"))
        lowered = jax.jit(step, donate_argnums=1).lower(model.params, cache)
        held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
        return lowered.compile().memory_analysis(), held

    (few, few_bytes), (many, many_bytes) = memory(8), memory(64)
    assert many.alias_size_in_bytes - few.alias_size_in_bytes == many_bytes - few_bytes > 0
    assert many.temp_size_in_bytes == few.temp_size_in_bytes


def test_blocks_that_differ_in_their_owner_alone_are_traced_once():
    model = load_model(shared_case(2), mesh=make_mesh())
    graphs = [nnx.split(block)[0] for block in model.merge(model.params).layers]
    assert graphs[1] == graphs[3] == graphs[5]
    assert graphs[0] == graphs[2] == graphs[4] != graphs[1]
