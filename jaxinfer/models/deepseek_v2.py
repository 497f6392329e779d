"""DeepSeek-V2, V2.5, Coder-V2 and their Lite forms (arXiv 2405.04434): MLA and shared experts."""

from collections.abc import Iterator
from dataclasses import replace

from jaxinfer.config import LayerSpec, ModelConfig, MoeSpec, RouterSpec
from jaxinfer.models.hf_config import HfConfig
from jaxinfer.models.hf_experts import (
    BALANCING_FIELDS,
    expert_mlp,
    expert_weights,
    in_groups,
    num_dense,
    router,
    shared_experts,
    with_experts,
)
from jaxinfer.models.hf_latent import DERIVED_FIELDS, latent_attention, latent_attention_weights
from jaxinfer.models.hf_specs import decoder, num_layers, rms_norm
from jaxinfer.models.llama import IGNORED_TENSORS, LAYER, gated_mlp, mlp_weights, outer_weights
from jaxinfer.models.weights import Family, WeightRule, norm

#: Of training alone.
TRAINING_FIELDS = BALANCING_FIELDS | {"aux_loss_alpha", "seq_aux", "ep_size"}


def _read(fields: HfConfig) -> ModelConfig:
    bias = fields.flag("mlp_bias", False)
    layer = LayerSpec(
        mixer=latent_attention(fields, interleaved=True),
        mlp=gated_mlp(fields, bias=bias),
        pre_norm=rms_norm(fields),
    )
    fields.only("moe_layer_freq", 1)
    first, layers = num_dense(fields), (layer,) * num_layers(fields)
    if first < len(layers):
        layers = with_experts(layers, _experts(fields, bias), lambda i: i >= first)
    return decoder(fields, layers=layers, final_norm=rms_norm(fields))


def _experts(fields: HfConfig, bias: bool) -> MoeSpec:
    fields.only("scoring_func", "softmax")
    fields.only("norm_topk_prob", False)
    expert = expert_mlp(fields, "moe_intermediate_size")
    shared = replace(shared_experts(fields, expert), bias=bias)
    return MoeSpec(router=_router(fields), expert=expert, shared=shared)


def _router(fields: HfConfig) -> RouterSpec:
    spec = router(
        fields,
        "n_routed_experts",
        renormalize=False,
        scale=fields.positive("routed_scaling_factor", 1.0),
    )
    methods = {"greedy": False, "group_limited_greedy": True}
    if fields.choice("topk_method", methods, "greedy"):
        return in_groups(fields, spec, "max")
    for unused in ("n_group", "topk_group"):
        fields.get(unused)
    return spec


def weights(config: ModelConfig) -> Iterator[WeightRule]:
    """The rules of a pre-norm stack with MLA and, in some layers, experts."""
    layer = config.layers[0]
    yield from outer_weights(config)
    yield from norm("layers.{i}.mixer_norm", LAYER + "input_layernorm", layer.pre_norm)
    yield from latent_attention_weights(config)
    yield from norm("layers.{i}.mlp_norm", LAYER + "post_attention_layernorm", layer.pre_norm)
    yield from mlp_weights(config)
    yield from expert_weights(config, shared="shared_experts")


DEEPSEEK_V2 = Family(
    name="deepseek_v2",
    model_types=("deepseek_v2",),
    read=_read,
    weights=weights,
    defaults={
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "moe_intermediate_size": 1407,
    },
    ignored_fields=TRAINING_FIELDS | DERIVED_FIELDS,
    ignored_tensors=IGNORED_TENSORS,
)
