"""Qwen 2 and 2.5 (arXiv 2407.10671): Llama with biases on q, k, v; windows in upper layers."""

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
from jaxinfer.models.llama import IGNORED_TENSORS, gated_mlp, weights
from jaxinfer.models.weights import Family

#: Read only where ``use_sliding_window`` says so.
WINDOW_FIELDS = frozenset({"sliding_window", "max_window_layers"})
WINDOW_DEFAULTS = {"sliding_window": 4096, "max_window_layers": 28}


def _read(fields: HfConfig) -> ModelConfig:
    fields.only("use_mrope", False)
    dim = head_dim(fields)
    layer = LayerSpec(
        mixer=attention(fields, dim, rope=rope(fields, dim), qkv_bias=True),
        mlp=gated_mlp(fields),
        pre_norm=rms_norm(fields),
    )
    layers = upper_layers_windowed(fields, layer)
    return decoder(fields, layers=layers, final_norm=rms_norm(fields))


def upper_layers_windowed(fields: HfConfig, layer: LayerSpec) -> tuple[LayerSpec, ...]:
    """The layers from ``max_window_layers`` on have the window, if ``use_sliding_window``."""
    count = num_layers(fields)
    if not fields.flag("use_sliding_window", False):
        return windowed(fields, layer, count, None, lambda i: False)
    first = fields.get("max_window_layers")
    if not isinstance(first, int) or isinstance(first, bool) or first < 0:
        raise fields.error("max_window_layers", first, "a whole number, 0 or more")
    return windowed(fields, layer, count, sliding_window(fields), lambda i: i >= first)


QWEN2 = Family(
    name="qwen2",
    model_types=("qwen2",),
    read=_read,
    weights=weights,
    defaults={"num_key_value_heads": 32, **WINDOW_DEFAULTS},
    ignored_fields=WINDOW_FIELDS,
    ignored_tensors=IGNORED_TENSORS,
)
