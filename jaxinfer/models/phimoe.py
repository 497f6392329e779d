"""Phi 3.5 MoE (arXiv 2404.14219): LayerNorm, biases, LongRoPE; experts chosen by SparseMixer."""

from jaxinfer.config import LayerSpec, ModelConfig, MoeSpec
from jaxinfer.models.hf_config import HfConfig
from jaxinfer.models.hf_experts import BALANCING_FIELDS, expert_mlp, router
from jaxinfer.models.hf_rope import rope
from jaxinfer.models.hf_specs import (
    attention,
    decoder,
    head_dim,
    layer_norm,
    num_layers,
    sliding_window,
)
from jaxinfer.models.llama import IGNORED_TENSORS
from jaxinfer.models.mixtral import mixtral_weights
from jaxinfer.models.weights import Family


def _read(fields: HfConfig) -> ModelConfig:
    # The published choice is of two, one after the other; more of them mean nothing.
    fields.only("num_experts_per_tok", 2)
    dim, bias = head_dim(fields), fields.flag("attention_bias", False)
    norms = layer_norm(fields, "rms_norm_eps", bias=True)
    mixer = attention(
        fields,
        dim,
        rope=rope(fields, dim, theta=1e6),
        window=sliding_window(fields),
        qkv_bias=bias,
        out_bias=bias,
    )
    moe = MoeSpec(
        router=router(
            fields,
            "num_local_experts",
            "num_experts",
            scores="sparsemixer",
            renormalize=False,
            jitter=_jitter(fields),
        ),
        expert=expert_mlp(fields),
    )
    layer = LayerSpec(mixer=mixer, mlp=moe, pre_norm=norms)
    return decoder(
        fields,
        layers=(layer,) * num_layers(fields),
        final_norm=norms,
        head_bias=fields.flag("lm_head_bias", False),
    )


def _jitter(fields: HfConfig) -> float:
    jitter = fields.number("router_jitter_noise", 0.01)
    if jitter < 0:
        raise fields.error("router_jitter_noise", jitter, "0 or more")
    return jitter


PHIMOE = Family(
    name="phimoe",
    model_types=("phimoe",),
    read=_read,
    weights=mixtral_weights,
    defaults={"num_key_value_heads": 8, "num_local_experts": 16, "num_experts_per_tok": 2},
    # input_jitter_noise: of training. The other stands beside the rope's own fields.
    ignored_fields=BALANCING_FIELDS | {"input_jitter_noise", "original_max_position_embeddings"},
    ignored_tensors=IGNORED_TENSORS,
)
