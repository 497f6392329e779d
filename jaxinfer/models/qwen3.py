"""Qwen 3 (arXiv 2505.09388): Qwen 2 without the biases, with RMSNorm on each head of q and k."""

from jaxinfer.config import LayerSpec, ModelConfig
from jaxinfer.models.hf_config import HfConfig
from jaxinfer.models.hf_rope import rope
from jaxinfer.models.hf_specs import attention, decoder, head_dim, rms_norm
from jaxinfer.models.llama import IGNORED_TENSORS, gated_mlp, weights
from jaxinfer.models.qwen2 import WINDOW_DEFAULTS, WINDOW_FIELDS, upper_layers_windowed
from jaxinfer.models.weights import Family


def _read(fields: HfConfig) -> ModelConfig:
    dim, bias = head_dim(fields), fields.flag("attention_bias", False)
    norm = rms_norm(fields)
    mixer = attention(
        fields, dim, rope=rope(fields, dim), qk_norm=norm, qkv_bias=bias, out_bias=bias
    )
    layer = LayerSpec(mixer=mixer, mlp=gated_mlp(fields), pre_norm=norm)
    layers = upper_layers_windowed(fields, layer)
    return decoder(fields, layers=layers, final_norm=norm)


QWEN3 = Family(
    name="qwen3",
    model_types=("qwen3",),
    read=_read,
    weights=weights,
    defaults={"head_dim": 128, "num_key_value_heads": 32, **WINDOW_DEFAULTS},
    ignored_fields=WINDOW_FIELDS,
    ignored_tensors=IGNORED_TENSORS,
)
