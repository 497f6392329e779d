"""Seed-OSS 36B: Llama with biases on q, k and v, and by choice one on o."""

from jaxinfer.config import ModelConfig
from jaxinfer.models.hf_config import HfConfig
from jaxinfer.models.hf_rope import rope
from jaxinfer.models.hf_specs import attention, head_dim, rms_norm
from jaxinfer.models.llama import IGNORED_TENSORS, gated_mlp, pre_norm_decoder, weights
from jaxinfer.models.weights import Family


def _read(fields: HfConfig) -> ModelConfig:
    dim = head_dim(fields)
    mixer = attention(
        fields,
        dim,
        rope=rope(fields, dim),
        qkv_bias=fields.flag("attention_bias", True),
        out_bias=fields.flag("attention_out_bias", False),
    )
    mlp = gated_mlp(fields, bias=fields.flag("mlp_bias", False))
    return pre_norm_decoder(fields, mixer, mlp, rms_norm(fields))


SEED_OSS = Family(
    name="seed_oss",
    model_types=("seed_oss",),
    read=_read,
    weights=weights,
    defaults={"head_dim": 128, "num_key_value_heads": 8},
    ignored_fields=frozenset({"residual_dropout"}),
    ignored_tensors=IGNORED_TENSORS,
)
