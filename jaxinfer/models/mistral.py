"""Mistral 7B (arXiv 2310.06825), Nemo, Codestral: Llama with a sliding window in all layers.

Ministral 8B: in some of them.
"""

from jaxinfer.config import LayerSpec, ModelConfig
from jaxinfer.models.hf_config import HfConfig
from jaxinfer.models.hf_rope import rope
from jaxinfer.models.hf_specs import (
    attention,
    decoder,
    head_dim,
    num_layers,
    rms_norm,
    sliding_window,
    windowed,
)
from jaxinfer.models.llama import IGNORED_TENSORS, gated_mlp, pre_norm_decoder, weights
from jaxinfer.models.weights import Family

_DEFAULTS = {"num_key_value_heads": 8, "sliding_window": 4096}


def _read(fields: HfConfig) -> ModelConfig:
    dim = head_dim(fields)
    mixer = attention(fields, dim, rope=rope(fields, dim), window=sliding_window(fields))
    return pre_norm_decoder(fields, mixer, gated_mlp(fields), rms_norm(fields))


def _read_ministral(fields: HfConfig) -> ModelConfig:
    dim, norms = head_dim(fields), rms_norm(fields)
    mixer = attention(fields, dim, rope=rope(fields, dim))
    layer = LayerSpec(mixer=mixer, mlp=gated_mlp(fields), pre_norm=norms)
    count, window = num_layers(fields), sliding_window(fields)
    layers = windowed(fields, layer, count, window, lambda i: True)
    return decoder(fields, layers=layers, final_norm=norms)


MISTRAL = Family(
    name="mistral",
    model_types=("mistral",),
    read=_read,
    weights=weights,
    defaults=_DEFAULTS,
    ignored_tensors=IGNORED_TENSORS,
)
MINISTRAL = Family(
    name="ministral",
    model_types=("ministral",),
    read=_read_ministral,
    weights=weights,
    defaults=_DEFAULTS,
    ignored_tensors=IGNORED_TENSORS,
)
