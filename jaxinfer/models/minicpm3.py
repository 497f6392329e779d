"""MiniCPM 3 (arXiv 2404.06395): MLA without experts; branches, embeddings and logits are scaled."""

import math

from jaxinfer.config import LayerSpec, ModelConfig
from jaxinfer.models.deepseek_v2 import weights
from jaxinfer.models.hf_config import HfConfig
from jaxinfer.models.hf_latent import DERIVED_FIELDS, latent_attention
from jaxinfer.models.hf_specs import decoder, num_layers, rms_norm
from jaxinfer.models.llama import IGNORED_TENSORS, gated_mlp
from jaxinfer.models.weights import Family


def _read(fields: HfConfig) -> ModelConfig:
    width, count = fields.size("hidden_size"), num_layers(fields)
    norm = rms_norm(fields, eps=1e-5)
    value_dim = max(width // fields.size("num_attention_heads"), 1)
    layer = LayerSpec(
        mixer=latent_attention(fields, interleaved=False, value_dim=value_dim),
        mlp=gated_mlp(fields, bias=fields.flag("mlp_bias", False)),
        pre_norm=norm,
        residual_scale=fields.positive("scale_depth", math.sqrt(count)) / math.sqrt(count),
    )
    return decoder(
        fields,
        layers=(layer,) * count,
        final_norm=norm,
        embed_scale=fields.positive("scale_emb"),
        logit_scale=fields.positive("dim_model_base", width) / width,
    )


MINICPM3 = Family(
    name="minicpm3",
    model_types=("minicpm3",),
    read=_read,
    weights=weights,
    defaults={
        "q_lora_rank": 768,
        "kv_lora_rank": 256,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "scale_emb": 12,
        "scale_depth": 1.4,
        "dim_model_base": 256,
        "tie_word_embeddings": True,
    },
    ignored_fields=DERIVED_FIELDS,
    ignored_tensors=IGNORED_TENSORS,
)
