"""Mistral 7B (arXiv 2310.06825), Nemo, Codestral: Llama with a sliding window in all layers."""

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
)
from jaxinfer.models.llama import IGNORED_TENSORS, gated_mlp, weights
from jaxinfer.models.weights import Family


def _read(fields: HfConfig) -> ModelConfig:
    dim = head_dim(fields)
    layer = LayerSpec(
        mixer=attention(fields, dim, rope=rope(fields, dim), window=sliding_window(fields)),
        mlp=gated_mlp(fields),
        pre_norm=rms_norm(fields),
    )
    layers = (layer,) * num_layers(fields)
    return decoder(fields, layers=layers, final_norm=rms_norm(fields))


MISTRAL = Family(
    name="mistral",
    model_types=("mistral",),
    read=_read,
    weights=weights,
    defaults={"sliding_window": 4096},
    ignored_tensors=IGNORED_TENSORS,
)
