"""Gemma (arXiv 2403.08295): norms that hold ``w`` of ``1 + w``, embeddings times sqrt(D), GeGLU.

CodeGemma is the same; the later Gemmas take its MLP, norm and embedding scale.
"""

import math
from collections.abc import Mapping
from typing import Any

from jaxinfer.config import LayerSpec, MlpSpec, ModelConfig, NormSpec
from jaxinfer.models.hf_config import GEMMA_ACTIVATIONS, HfConfig
from jaxinfer.models.hf_rope import rope
from jaxinfer.models.hf_specs import attention, decoder, head_dim, num_layers, rms_norm
from jaxinfer.models.llama import IGNORED_TENSORS, weights
from jaxinfer.models.weights import Family

#: Of every Gemma.
GEMMA_DEFAULTS: Mapping[str, Any] = {
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}


def _read(fields: HfConfig) -> ModelConfig:
    dim, bias = head_dim(fields), fields.flag("attention_bias", False)
    layer = LayerSpec(
        mixer=attention(fields, dim, rope=rope(fields, dim), qkv_bias=bias, out_bias=bias),
        mlp=gemma_mlp(fields),
        pre_norm=gemma_norm(fields),
    )
    return gemma_decoder(fields, layers=(layer,) * num_layers(fields))


def gemma_mlp(fields: HfConfig) -> MlpSpec:
    """GeGLU; ``hidden_activation`` is the newer name and goes before ``hidden_act``."""
    name = "hidden_act" if fields.get("hidden_activation") is None else "hidden_activation"
    activation = fields.activation(name, GEMMA_ACTIVATIONS)
    return MlpSpec(width=fields.size("intermediate_size"), activation=activation)


def gemma_norm(fields: HfConfig) -> NormSpec:
    """RMSNorm by ``1 + w``."""
    return rms_norm(fields, unit_offset=True)


def gemma_decoder(fields: HfConfig, *, layers: tuple[LayerSpec, ...], **kwargs: Any) -> ModelConfig:
    """A tied decoder whose embeddings are scaled by the square root of the width."""
    fields.only("use_bidirectional_attention", False)
    return decoder(
        fields,
        layers=layers,
        final_norm=gemma_norm(fields),
        embed_scale=math.sqrt(fields.size("hidden_size")),
        **kwargs,
    )


GEMMA = Family(
    name="gemma",
    model_types=("gemma",),
    read=_read,
    weights=weights,
    defaults={**GEMMA_DEFAULTS, "num_key_value_heads": 16},
    ignored_fields=frozenset({"hidden_act"}),
    ignored_tensors=IGNORED_TENSORS,
)
