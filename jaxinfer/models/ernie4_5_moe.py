"""Ernie 4.5 21B-A3B, 300B-A47B: Ernie 4.5 with experts, some of them shared by all tokens."""

from collections.abc import Iterator
from dataclasses import replace

from jaxinfer.config import LayerSpec, ModelConfig, MoeSpec
from jaxinfer.models.hf_config import MAX_LAYERS, HfConfig
from jaxinfer.models.hf_experts import (
    BALANCING_FIELDS,
    MAX_EXPERTS,
    expert_mlp,
    expert_weights,
    router,
    with_experts,
)
from jaxinfer.models.hf_rope import rope
from jaxinfer.models.hf_specs import attention, decoder, head_dim, num_layers, rms_norm
from jaxinfer.models.llama import IGNORED_TENSORS, LAYER, gated_mlp, weights
from jaxinfer.models.weights import Family, WeightRule

_CORRECTION = "layers.{i}.mlp.correction"


def _read(fields: HfConfig) -> ModelConfig:
    # The sum of the chosen shares is never near this: dividing by it needs no least value.
    fields.only("moe_norm_min", 1e-12)
    fields.only("moe_gate", "topk")
    fields.only("moe_use_aux_free", True)
    # Biases that transformers has in some MLPs and not in the experts: no model was published so.
    fields.only("use_bias", False)
    norms, count = rms_norm(fields, eps=1e-5), num_layers(fields)
    dim = head_dim(fields)
    mixer = attention(fields, dim, rope=rope(fields, dim, theta=500000.0, interleaved=True))
    layer = LayerSpec(mixer=mixer, mlp=gated_mlp(fields), pre_norm=norms)
    top_k_name = "moe_k"
    if fields.states("num_experts_per_tok") and not fields.states("moe_k"):
        top_k_name = "num_experts_per_tok"
    else:
        fields.only("num_experts_per_tok", None, fields.get("moe_k"))
    chosen = router(
        fields,
        "moe_num_experts",
        "num_experts",
        top_k_name=top_k_name,
        correction=True,
        float32=True,
    )
    expert = expert_mlp(fields, "moe_intermediate_size")
    num_shared = fields.count("moe_num_shared_experts", 2, most=MAX_EXPERTS)
    shared = replace(expert, width=num_shared * expert.width) if num_shared else None
    moe = MoeSpec(router=chosen, expert=expert, shared=shared)
    step = fields.size("moe_layer_interval", 1, most=MAX_LAYERS)
    first = fields.count("moe_layer_start_index", 1, most=MAX_LAYERS)
    last = fields.get("moe_layer_end_index", -1)
    last = count - 1 if last == -1 else fields.count("moe_layer_end_index", 0, most=MAX_LAYERS)
    layers = with_experts(
        (layer,) * count, moe, lambda i: first <= i <= last and (i + 1) % step == 0
    )
    return decoder(fields, layers=layers, final_norm=norms)


def _weights(config: ModelConfig) -> Iterator[WeightRule]:
    yield from weights(config)
    for rule in expert_weights(config, shared="shared_experts"):
        yield _as_ernie_calls_it(rule) if rule.target == _CORRECTION else rule


def _as_ernie_calls_it(correction: WeightRule) -> WeightRule:
    return replace(
        correction,
        source=LAYER + "mlp.moe_statics.e_score_correction_bias",
        transform=lambda tensor, config, layer: tensor.reshape(-1),
    )


ERNIE4_5_MOE = Family(
    name="ernie4_5_moe",
    model_types=("ernie4_5_moe",),
    read=_read,
    weights=_weights,
    defaults={
        "num_key_value_heads": 4,
        "moe_num_experts": 64,
        "moe_k": 6,
        "moe_intermediate_size": 1536,
        "tie_word_embeddings": True,
    },
    # Layers that predict further tokens at once: none of the decoder's.
    ignored_fields=BALANCING_FIELDS | {"moe_capacity", "num_nextn_predict_layers"},
    ignored_tensors=(*IGNORED_TENSORS, r"model\.mtp_.*"),
)
