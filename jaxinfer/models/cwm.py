"""Code World Model 32B (arXiv 2510.02387): Llama 3.1 with three layers of windows to a full one."""

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

#: Where a config states no rope.
_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1e6,
    "factor": 16.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _read(fields: HfConfig) -> ModelConfig:
    fields.only("attention_bias", False)
    dim, norms = head_dim(fields), rms_norm(fields, eps=1e-5)
    layer = LayerSpec(
        mixer=attention(fields, dim, rope=rope(fields, dim, theta=1e6, unstated=_ROPE)),
        mlp=gated_mlp(fields, bias=fields.flag("mlp_bias", False)),
        pre_norm=norms,
    )
    count, window = num_layers(fields), sliding_window(fields)
    layers = windowed(fields, layer, count, window, lambda i: i % 4 != 0)
    return decoder(fields, layers=layers, final_norm=norms)


CWM = Family(
    name="cwm",
    model_types=("cwm",),
    read=_read,
    weights=weights,
    defaults={"head_dim": 128, "num_key_value_heads": 8, "sliding_window": 8192},
    ignored_tensors=IGNORED_TENSORS,
)
