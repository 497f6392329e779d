"""Command R: one LayerNorm before both branches, rope by neighbours, logits scaled down.

Cohere 2 (Command A, R7B; arXiv 2504.00698): three layers with windows and rope to one without
both.
"""

from collections.abc import Iterator

from jaxinfer.config import AttentionSpec, LayerSpec, ModelConfig, NormSpec
from jaxinfer.models.hf_config import MAX_LEN, HfConfig
from jaxinfer.models.hf_rope import rope
from jaxinfer.models.hf_specs import (
    attention,
    decoder,
    head_dim,
    layer_norm,
    max_len,
    num_layers,
    only_windows_rotate,
    sliding_window,
    windowed,
)
from jaxinfer.models.llama import (
    IGNORED_TENSORS,
    LAYER,
    attention_weights,
    gated_mlp,
    mlp_weights,
    outer_weights,
)
from jaxinfer.models.weights import Family, WeightRule, norm

#: What the authors' own configs say of things that transformers takes for granted.
_AS_ALWAYS = {
    "order_of_interleaved_layers": "local_attn_first",
    "position_embedding_type": "rope_gptj",
    "rotary_pct": 1.0,
    "use_embedding_sharing": True,
    "use_gated_activation": True,
    "use_parallel_block": True,
}


def _read_cohere(fields: HfConfig) -> ModelConfig:
    norms = layer_norm(fields)
    qk_norm = norms if fields.flag("use_qk_norm", False) else None
    mixer = _attention(fields, theta=500000.0, qk_norm=qk_norm)
    layers = (_layer(fields, mixer, norms),) * num_layers(fields)
    return _decoder(fields, layers, norms)


def _read_cohere2(fields: HfConfig) -> ModelConfig:
    for name, value in _AS_ALWAYS.items():
        fields.only(name, value)
    fields.only("use_qk_norm", False)
    norms = layer_norm(fields)
    layer = _layer(fields, _attention(fields, theta=10000.0), norms)
    count, window = num_layers(fields), sliding_window(fields)
    pattern = fields.size("sliding_window_pattern", 4)
    layers = windowed(fields, layer, count, window, lambda i: (i + 1) % pattern != 0)
    return _decoder(fields, only_windows_rotate(layers), norms)


def _attention(fields: HfConfig, *, theta: float, qk_norm: NormSpec | None = None) -> AttentionSpec:
    dim, bias = head_dim(fields), fields.flag("attention_bias", False)
    return attention(
        fields,
        dim,
        rope=rope(fields, dim, theta=theta, interleaved=True),
        qk_norm=qk_norm,
        qk_norm_over="each_head",
        qkv_bias=bias,
        out_bias=bias,
    )


def _layer(fields: HfConfig, mixer: AttentionSpec, norms: NormSpec) -> LayerSpec:
    mlp = gated_mlp(fields)
    return LayerSpec(mixer=mixer, mlp=mlp, pre_norm=norms, parallel=True, shared_norm=True)


def _decoder(fields: HfConfig, layers: tuple[LayerSpec, ...], norms: NormSpec) -> ModelConfig:
    scale = fields.positive("logit_scale", 0.0625)
    # What the first Command R was made for: beside it, max_position_embeddings is too small.
    most = fields.size("model_max_length", max_len(fields), most=MAX_LEN)
    return decoder(fields, layers=layers, final_norm=norms, logit_scale=scale, max_len=most)


def _weights(config: ModelConfig) -> Iterator[WeightRule]:
    layer = config.layers[0]
    yield from outer_weights(config)
    yield from norm("layers.{i}.mixer_norm", LAYER + "input_layernorm", layer.pre_norm)
    yield from attention_weights(config)
    yield from mlp_weights(config)


COHERE = Family(
    name="cohere",
    model_types=("cohere",),
    read=_read_cohere,
    weights=_weights,
    defaults={"tie_word_embeddings": True},
    ignored_tensors=IGNORED_TENSORS,
)
COHERE2 = Family(
    name="cohere2",
    model_types=("cohere2",),
    read=_read_cohere2,
    weights=_weights,
    defaults={"tie_word_embeddings": True, "sliding_window": 4096},
    # layer_switch: sliding_window_pattern under the authors' name, beside it.
    ignored_fields=frozenset({"layer_switch", "use_parallel_embedding"}),
    ignored_tensors=IGNORED_TENSORS,
)
