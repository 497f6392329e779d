"""DeepSeek-V3, R1, V3.1 (arXiv 2412.19437) and Kimi K2: MLA, experts chosen by biased sigmoids."""

from jaxinfer.config import LayerSpec, ModelConfig
from jaxinfer.models.deepseek_v2 import TRAINING_FIELDS, weights
from jaxinfer.models.hf_config import HfConfig
from jaxinfer.models.hf_experts import deepseek_experts, num_dense, with_experts
from jaxinfer.models.hf_latent import DERIVED_FIELDS, latent_attention
from jaxinfer.models.hf_specs import decoder, num_layers, rms_norm
from jaxinfer.models.llama import IGNORED_TENSORS, gated_mlp
from jaxinfer.models.weights import Family


def _read(fields: HfConfig) -> ModelConfig:
    interleaved = fields.flag("rope_interleave", True)
    layer = LayerSpec(
        mixer=latent_attention(fields, interleaved=interleaved),
        mlp=gated_mlp(fields),
        pre_norm=rms_norm(fields),
    )
    fields.only("moe_layer_freq", 1)
    fields.only("scoring_func", "sigmoid")
    fields.only("topk_method", "noaux_tc")
    first, layers = num_dense(fields), (layer,) * num_layers(fields)
    layers = with_experts(layers, deepseek_experts(fields), lambda i: i >= first)
    return decoder(fields, layers=layers, final_norm=rms_norm(fields))


DEEPSEEK_V3 = Family(
    name="deepseek_v3",
    model_types=("deepseek_v3", "kimi_k2"),
    read=_read,
    weights=weights,
    defaults={
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 2048,
        "n_group": 8,
        "topk_group": 4,
        "routed_scaling_factor": 2.5,
        "first_k_dense_replace": 3,
    },
    # Layers that predict further tokens at once: none of the decoder's.
    ignored_fields=TRAINING_FIELDS
    | DERIVED_FIELDS
    | {"num_nextn_predict_layers", "num_mtp_layers"},
    ignored_tensors=(*IGNORED_TENSORS, r"model\.layers\.61\..*"),
)
