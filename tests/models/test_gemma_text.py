"""Gemma 3n and 4: what their configs say, what is refused, and the language part of the rest."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.batch import Ragged
from jaxinfer.cache import init_cache, layer_groups
from jaxinfer.config import (
    AltUpSpec,
    LaurelSpec,
    LayerInputSpec,
    MlpSpec,
    MoeSpec,
    NormSpec,
    ProportionalScaling,
    RouterSpec,
)
from jaxinfer.errors import ConfigError
from jaxinfer.models.loading import load_model
from jaxinfer.models.registry import family_for, model_config
from jaxinfer.ops.rope import frequencies
from sharding import make_mesh
from tests.models.dict_source import DictSource
from tests.models.golden_case import GoldenCase

GEMMA3N, GEMMA4, GEMMA4_MOE = (GoldenCase(name) for name in ("gemma3n", "gemma4", "gemma4_moe"))
NORM = NormSpec()


@pytest.mark.parametrize(
    ("case", "fields", "message"),
    [
        (GEMMA3N, {"num_kv_shared_layers": 5}, "num_kv_shared_layers = 5.*each kind before them"),
        (GEMMA3N, {"num_kv_shared_layers": 6}, "num_kv_shared_layers = 6"),
        (GEMMA3N, {"num_kv_shared_layers": 3}, "num_kv_shared_layers = 3.*each kind before them"),
        (GEMMA3N, {"num_kv_shared_layers": -1}, "num_kv_shared_layers = -1"),
        (GEMMA3N, {"altup_num_inputs": 1}, "altup_num_inputs = 1.*from 2"),
        (GEMMA3N, {"altup_active_idx": 4}, "altup_active_idx = 4"),
        (GEMMA3N, {"activation_sparsity_pattern": [0.5]}, "activation_sparsity_pattern.*5 numbers"),
        (GEMMA3N, {"activation_sparsity_pattern": [1.0] * 5}, "activation_sparsity_pattern"),
        (GEMMA3N, {"intermediate_size": [80]}, "intermediate_size = .80.*or 5 of them"),
        (GEMMA3N, {"intermediate_size": [80, 80, 80, 80, 0]}, "intermediate_size"),
        (GEMMA4, {"use_bidirectional_attention": "all"}, "use_bidirectional_attention = 'all'"),
        (GEMMA4, {"layer_types": ["sliding_attention"] * 5}, "layer_types.*ends with 'full_att"),
        (GEMMA4, {"num_kv_shared_layers": 5}, "num_kv_shared_layers = 5"),
        (GEMMA4, {"per_layer_config": {"5": {}}}, "per_layer_config.*below 5"),
        (GEMMA4, {"per_layer_config": {"x": {}}}, "per_layer_config.*below 5"),
        (GEMMA4, {"per_layer_config": {"2": {"skip": ["mlp"]}}}, r"per_layer_config\.2\.skip"),
        (
            GEMMA4,
            {"per_layer_config": {"2": {"head_dim": 0}}},
            r"per_layer_config\.2\.head_dim = 0",
        ),
        (
            GEMMA4,
            {"per_layer_config": {"2": {"num_key_value_heads": 3}}},
            r"per_layer_config\.2\.num_key_value_heads = 3.*divisor of num_attention_heads = 4",
        ),
        (
            GEMMA4,
            {"rope_parameters": {"full_attention": {"partial_rotary_factor": 0.5}}},
            "full_attention = .*'proportional' only",
        ),
        (
            GEMMA4_MOE,
            {"per_layer_config": None, "num_global_key_value_heads": 3},
            "num_global_key_value_heads = 3.*divisor of num_attention_heads = 4",
        ),
        (GEMMA4_MOE, {"top_k_experts": 7}, "top_k_experts = 7.*at most num_experts = 6"),
        (GEMMA4_MOE, {"moe_intermediate_size": None}, "moe_intermediate_size is missing"),
    ],
)
def test_what_cannot_be_is_refused_by_the_field(case, fields, message):
    with pytest.raises(ConfigError, match=message):
        model_config({**case.config, **fields})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AltUpSpec(num_streams=1, norm=NORM), "num_streams = 1"),
        (lambda: AltUpSpec(num_streams=2, norm=NORM, active=2), "active = 2.*from 0 to 1"),
        (lambda: LaurelSpec(rank=0, norm=NORM), "rank = 0"),
        (lambda: MlpSpec(width=8, sparsity=1.0), "sparsity = 1.0.*below 1"),
        (lambda: MlpSpec(width=8, sparsity=0.5, gated=False), "sparsity = 0.5.*without a gate"),
        (lambda: NormSpec(weight=False, unit_offset=True), "norm weight = False"),
        (lambda: ProportionalScaling(share=1.5), "share of a proportional rope = 1.5"),
        (
            lambda: MoeSpec(
                router=RouterSpec(num_experts=2, top_k=1), expert=MlpSpec(width=8, sparsity=0.5)
            ),
            "sparsity of an expert = 0.5",
        ),
        (
            lambda: LayerInputSpec(
                width=0, vocab_size=8, activation="silu", norm=NORM, post_norm=NORM
            ),
            "width = 0",
        ),
    ],
)
def test_specs_refuse_what_they_cannot_mean(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_the_first_ten_layers_are_sparse_where_nothing_else_is_said():
    config = {**GEMMA3N.config, "num_hidden_layers": 15, "layer_types": None}
    del config["activation_sparsity_pattern"]
    layers = model_config({**config, "intermediate_size": 80}).layers
    assert [layer.mlp.sparsity for layer in layers] == [0.95] * 10 + [0.0] * 5
    assert [i for i, layer in enumerate(layers) if layer.mixer.window is None] == [4, 9, 14]


def test_heads_of_global_layers_are_read_in_both_styles():
    for case in (GEMMA4, GEMMA4_MOE):
        config = {**case.config, "global_head_dim": 24 if case is GEMMA4 else 32}
        del config["per_layer_config"]
        if case is GEMMA4_MOE:
            config["num_global_key_value_heads"] = 1
        assert model_config(config) == model_config(case.config)
    mixers = [layer.mixer for layer in model_config(GEMMA4_MOE.config).layers]
    assert [(m.head_dim, m.num_kv_heads, m.v_from_k) for m in mixers] == [
        (16, 2, False),
        (32, 1, True),
    ]


def test_a_proportional_rope_turns_the_first_pairs_as_they_were():
    rope = model_config(GEMMA4_MOE.config).layers[1].mixer.rope
    assert rope is not None
    radians_h, factor = frequencies(rope, 64)
    expected = [1e6 ** (-2 * i / 32) if i < 4 else 0.0 for i in range(16)]
    np.testing.assert_allclose(radians_h, expected, rtol=1e-12)
    assert factor == 1.0
    halved = replace(rope, scaling=ProportionalScaling(share=0.25, factor=2.0))
    np.testing.assert_allclose(frequencies(halved, 64)[0], radians_h / 2)


def test_ropes_of_gemma_4_are_the_known_ones_where_none_are_given():
    config = {name: value for name, value in GEMMA4.config.items() if name != "rope_parameters"}
    assert model_config(config) == model_config(GEMMA4.config)
    assert model_config({**config, "rope_parameters": None}) == model_config(GEMMA4.config)


@pytest.mark.parametrize("case", [GEMMA3N, GEMMA4_MOE], ids=str)
def test_the_language_part_of_a_multimodal_checkpoint_is_taken(case):
    family = family_for(case.config)
    outer = {
        "model_type": family.name,
        "architectures": ["ForConditionalGeneration"],
        "text_config": case.config,
        "vision_config": {"hidden_size": 1152},
        "audio_config": {"hidden_size": 1536},
        "image_token_id": 120,
        "audio_token_id": 121,
        "boi_token_id": 122,
        "tie_word_embeddings": case.config["tie_word_embeddings"],
        "eos_token_id": [1, 106],
    }
    assert model_config(outer) == replace(model_config(case.config), eos_token_ids=(1, 106))
    with pytest.raises(ConfigError, match=r"text_config\.num_towers = 4"):
        model_config({**outer, "text_config": {**case.config, "num_towers": 4}})
    shapes = {
        name.replace("model.", "model.language_model.", 1): s for name, s in case.shapes.items()
    }
    senses = {f"model.{part}.x.weight": (4, 4) for part in ("vision_tower", "embed_audio")}
    model = load_model(DictSource(outer, shapes | senses), mesh=make_mesh())
    assert model.num_params == sum(int(np.prod(shape)) for shape in case.shapes.values())


def test_keys_and_values_that_nobody_reads_are_passed_over():
    unread = {
        "model.layers.3.self_attn.k_proj.weight": (32, 48),
        "model.layers.3.self_attn.v_proj.weight": (32, 48),
        "model.layers.3.self_attn.k_norm.weight": (16,),
    }
    model = load_model(DictSource(GEMMA3N.config, GEMMA3N.shapes | unread), mesh=make_mesh())
    assert sorted(model.params["layers"][3]["mixer"]) == ["o", "q", "q_norm"]


def test_experts_stand_beside_the_mlp_with_norms_of_their_own():
    mlp = MlpSpec(width=80, activation="gelu_tanh")
    assert model_config(GEMMA4_MOE.config).layers[0].mlp == MoeSpec(
        router=RouterSpec(num_experts=6, top_k=3, expert_scale=True, logit_scale=48**-0.5),
        expert=replace(mlp, width=24),
        shared=mlp,
        part_norm=NormSpec(eps=1e-6),
    )
    doubled = [layer.mlp.width for layer in model_config(GEMMA4.config).layers]
    assert doubled == [80, 80, 80, 160, 160]


@pytest.mark.parametrize("case", [GEMMA3N, GEMMA4_MOE], ids=str)
def test_the_stream_keeps_the_dtype_of_the_model(case):
    model = load_model(case.source, mesh=make_mesh(), dtype="bfloat16")
    num_groups = len(layer_groups(model.config))
    ragged = Ragged(
        kv_lens_S=jnp.asarray([2], jnp.int32),
        cu_q_lens_S1=jnp.asarray([0, 2], jnp.int32),
        distribution_3=jnp.asarray([0, 1, 1], jnp.int32),
    )

    def step(params):
        decoder, tokens_T = model.merge(params), jnp.arange(2, dtype=jnp.int32)
        cache = init_cache(model.config, (2,) * num_groups, 8, "bfloat16")
        tables = (jnp.ones((1, 1), jnp.int32),) * num_groups
        hidden_TD, _ = decoder(tokens_T, tokens_T, cache, tables, ragged)
        return hidden_TD, decoder.logits(hidden_TD)

    hidden_TD, logits_TV = jax.eval_shape(step, model.params)
    assert (hidden_TD.shape, hidden_TD.dtype) == ((2, 48), jnp.bfloat16)
    assert (logits_TV.shape, logits_TV.dtype) == ((2, 128), jnp.float32)


@pytest.mark.parametrize("count", [1, 5, 6, 7, 12])
def test_the_last_layer_of_a_gemma_4_sees_everything_where_nothing_is_said(count):
    fields = {"num_hidden_layers": count, "layer_types": None, "per_layer_config": None}
    config = model_config({**GEMMA4.config, **fields, "num_kv_shared_layers": 0})
    seeing = [i for i, layer in enumerate(config.layers) if layer.mixer.window is None]
    assert seeing == sorted({*range(5, count, 6), count - 1})
