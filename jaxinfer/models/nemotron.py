"""Nemotron 3 and 4, Minitron (arXiv 2402.16819): ReLU² without a gate, LayerNorm by ``1 + w``.

Arcee's AFM has the same MLP in Llama's block.
"""

from collections.abc import Iterator

from jaxinfer.config import MlpSpec, ModelConfig
from jaxinfer.models.hf_config import HfConfig
from jaxinfer.models.hf_rope import rope
from jaxinfer.models.hf_specs import attention, head_dim, layer_norm, rms_norm
from jaxinfer.models.llama import (
    IGNORED_TENSORS,
    LAYER,
    attention_weights,
    outer_weights,
    pre_norm_decoder,
)
from jaxinfer.models.weights import Family, WeightRule, linear, norm

_DEFAULTS = {"hidden_act": "relu2"}


def _read_nemotron(fields: HfConfig) -> ModelConfig:
    dim, bias = head_dim(fields), fields.flag("attention_bias", False)
    turning = rope(fields, dim, rotary_share=0.5)
    mixer = attention(fields, dim, rope=turning, qkv_bias=bias, out_bias=bias)
    norms = layer_norm(fields, "norm_eps", unit_offset=True, bias=True)
    return pre_norm_decoder(fields, mixer, _mlp(fields), norms)


def _read_arcee(fields: HfConfig) -> ModelConfig:
    dim, bias = head_dim(fields), fields.flag("attention_bias", False)
    mixer = attention(fields, dim, rope=rope(fields, dim), qkv_bias=bias, out_bias=bias)
    return pre_norm_decoder(fields, mixer, _mlp(fields), rms_norm(fields, eps=1e-5))


def _mlp(fields: HfConfig) -> MlpSpec:
    return MlpSpec(
        width=fields.size("intermediate_size"),
        activation=fields.activation("hidden_act"),
        gated=False,
        bias=fields.flag("mlp_bias", False),
    )


def _weights(config: ModelConfig) -> Iterator[WeightRule]:
    layer = config.layers[0]
    assert isinstance(layer.mlp, MlpSpec)
    yield from outer_weights(config)
    yield from norm("layers.{i}.mixer_norm", LAYER + "input_layernorm", layer.pre_norm)
    yield from attention_weights(config)
    yield from norm("layers.{i}.mlp_norm", LAYER + "post_attention_layernorm", layer.pre_norm)
    for part in ("up", "down"):
        source = f"{LAYER}mlp.{part}_proj"
        yield from linear(f"layers.{{i}}.mlp.{part}", source, bias=layer.mlp.bias)


NEMOTRON = Family(
    name="nemotron",
    model_types=("nemotron",),
    read=_read_nemotron,
    weights=_weights,
    defaults=_DEFAULTS,
    ignored_tensors=IGNORED_TENSORS,
)
ARCEE = Family(
    name="arcee",
    model_types=("arcee",),
    read=_read_arcee,
    weights=_weights,
    defaults=_DEFAULTS,
    ignored_tensors=IGNORED_TENSORS,
)
