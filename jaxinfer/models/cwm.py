"""Code World Model 32B (arXiv 2510.02387): Llama 3.1 with three layers of windows to a full one."""

from jaxinfer.config import LayerSpec, ModelConfig
from jaxinfer.models.hf_config import HfConfig
from jaxinfer.models.hf_rope import rope, rope_object
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


def _read(fields: HfConfig) -> ModelConfig:
    if rope_object(fields) is None:
        raise fields.error("rope_parameters", None, "given: this family's rope is scaled")
    fields.only("attention_bias", False)
    dim, norms = head_dim(fields), rms_norm(fields, eps=1e-5)
    layer = LayerSpec(
        mixer=attention(fields, dim, rope=rope(fields, dim, theta=1e6)),
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
    defaults={"head_dim": 128, "sliding_window": 8192},
    ignored_tensors=IGNORED_TENSORS,
)
