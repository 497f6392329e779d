"""StarCoder 2 (arXiv 2402.19173): LayerNorm, biases, an MLP without a gate."""

from collections.abc import Iterator

from jaxinfer.config import LayerSpec, MlpSpec, ModelConfig
from jaxinfer.models.hf_config import HfConfig
from jaxinfer.models.hf_rope import rope
from jaxinfer.models.hf_specs import (
    attention,
    decoder,
    head_dim,
    layer_norm,
    num_layers,
    sliding_window,
)
from jaxinfer.models.llama import IGNORED_TENSORS, LAYER, attention_weights, outer_weights
from jaxinfer.models.weights import Family, WeightRule, linear, norm


def _read(fields: HfConfig) -> ModelConfig:
    fields.only("norm_type", "layer_norm")
    fields.only("mlp_type", "default")
    fields.only("scale_attn_weights", True)
    dim, bias = head_dim(fields), fields.flag("use_bias", True)
    norms = layer_norm(fields, "norm_epsilon", bias=True)
    mixer = attention(
        fields,
        dim,
        rope=rope(fields, dim),
        window=sliding_window(fields),
        qkv_bias=bias,
        out_bias=bias,
    )
    mlp = MlpSpec(
        width=fields.size("intermediate_size"),
        activation=fields.activation("hidden_act"),
        gated=False,
        bias=bias,
    )
    layer = LayerSpec(mixer=mixer, mlp=mlp, pre_norm=norms)
    return decoder(fields, layers=(layer,) * num_layers(fields), final_norm=norms)


def _weights(config: ModelConfig) -> Iterator[WeightRule]:
    layer = config.layers[0]
    bias = layer.attention.qkv_bias
    yield from outer_weights(config)
    yield from norm("layers.{i}.mixer_norm", LAYER + "input_layernorm", layer.pre_norm)
    yield from attention_weights(config)
    yield from norm("layers.{i}.mlp_norm", LAYER + "post_attention_layernorm", layer.pre_norm)
    yield from linear("layers.{i}.mlp.up", LAYER + "mlp.c_fc", bias=bias)
    yield from linear("layers.{i}.mlp.down", LAYER + "mlp.c_proj", bias=bias)


STARCODER2 = Family(
    name="starcoder2",
    model_types=("starcoder2",),
    read=_read,
    weights=_weights,
    defaults={
        "num_key_value_heads": 2,
        "hidden_act": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
    },
    # activation_function: of the authors' own code, beside hidden_act.
    ignored_fields=frozenset(
        ["activation_function", "attention_softmax_in_fp32", "scale_attention_softmax_in_fp32"]
    ),
    ignored_tensors=IGNORED_TENSORS,
)
