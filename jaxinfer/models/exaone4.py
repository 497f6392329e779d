"""EXAONE 4.0 (arXiv 2507.11407): norms after the branches, windows, NoPE.

Where layers with and without a window take turns, those without have no rope.
"""

from jaxinfer.config import LayerSpec, ModelConfig
from jaxinfer.models.hf_config import HfConfig
from jaxinfer.models.hf_rope import rope
from jaxinfer.models.hf_specs import (
    attention,
    decoder,
    head_dim,
    num_layers,
    only_windows_rotate,
    rms_norm,
    sliding_window,
    windowed,
)
from jaxinfer.models.llama import IGNORED_TENSORS, gated_mlp
from jaxinfer.models.olmo2 import weights
from jaxinfer.models.weights import Family


def _read(fields: HfConfig) -> ModelConfig:
    dim, norms = head_dim(fields), rms_norm(fields, eps=1e-5)
    mixer = attention(fields, dim, rope=rope(fields, dim), qk_norm=norms)
    layer = LayerSpec(mixer=mixer, mlp=gated_mlp(fields), pre_norm=None, post_norm=norms)
    layers, window = (layer,) * num_layers(fields), sliding_window(fields)
    if window is None:
        # What stands in the pattern then, often 0 or nothing, has no layer to speak of.
        fields.get("sliding_window_pattern")
        layers = windowed(fields, layer, len(layers), None, lambda i: False)
    else:
        layers = only_windows_rotate(_hybrid(fields, layer, len(layers), window))
    return decoder(fields, layers=layers, final_norm=norms)


def _hybrid(fields: HfConfig, layer: LayerSpec, count: int, window: int) -> tuple[LayerSpec, ...]:
    """Layers with and without a window: by ``layer_types``, or else each n-th without one."""
    if fields.get("layer_types") is not None:
        # May be a text such as "LLLG" then, which says the same.
        fields.get("sliding_window_pattern")
        return windowed(fields, layer, count, window, lambda i: True)
    pattern = fields.size("sliding_window_pattern", 4)
    return windowed(fields, layer, count, window, lambda i: (i + 1) % pattern != 0)


EXAONE4 = Family(
    name="exaone4",
    model_types=("exaone4",),
    read=_read,
    weights=weights,
    defaults={"num_key_value_heads": 32, "sliding_window": 4096},
    ignored_tensors=IGNORED_TENSORS,
)
