"""Ernie 4.5 dense and Helium (arXiv 2410.00037): Llama with a rope that turns neighbours."""

from jaxinfer.config import AttentionSpec, ModelConfig
from jaxinfer.models.hf_config import HfConfig
from jaxinfer.models.hf_rope import rope
from jaxinfer.models.hf_specs import attention, head_dim, rms_norm
from jaxinfer.models.llama import IGNORED_TENSORS, gated_mlp, pre_norm_decoder, weights
from jaxinfer.models.weights import Family

_DEFAULTS = {"head_dim": 128}


def _read_ernie(fields: HfConfig) -> ModelConfig:
    bias = fields.flag("use_bias", False)
    mixer = _attention(fields, theta=500000.0, qkv_bias=bias, out_bias=bias)
    norms = rms_norm(fields, eps=1e-5)
    return pre_norm_decoder(fields, mixer, gated_mlp(fields, bias=bias), norms)


def _read_helium(fields: HfConfig) -> ModelConfig:
    bias = fields.flag("attention_bias", False)
    mixer = _attention(fields, theta=100000.0, qkv_bias=bias, out_bias=False)
    mlp = gated_mlp(fields, bias=fields.flag("mlp_bias", False))
    return pre_norm_decoder(fields, mixer, mlp, rms_norm(fields, eps=1e-8))


def _attention(fields: HfConfig, *, theta: float, qkv_bias: bool, out_bias: bool) -> AttentionSpec:
    dim = head_dim(fields)
    turning = rope(fields, dim, theta=theta, interleaved=True)
    return attention(fields, dim, rope=turning, qkv_bias=qkv_bias, out_bias=out_bias)


ERNIE4_5 = Family(
    name="ernie4_5",
    model_types=("ernie4_5",),
    read=_read_ernie,
    weights=weights,
    defaults={**_DEFAULTS, "num_key_value_heads": 2, "tie_word_embeddings": True},
    ignored_tensors=IGNORED_TENSORS,
)
HELIUM = Family(
    name="helium",
    model_types=("helium",),
    read=_read_helium,
    weights=weights,
    defaults={**_DEFAULTS, "num_key_value_heads": 20},
    ignored_tensors=IGNORED_TENSORS,
)
