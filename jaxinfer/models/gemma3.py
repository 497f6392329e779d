"""Gemma 3 text (arXiv 2503.19786): five local layers to a global one, each kind with its own rope.

Of a multimodal checkpoint the language model is taken.
"""

from dataclasses import replace

from jaxinfer.config import LayerSpec, ModelConfig, RopeSpec
from jaxinfer.models.gemma import GEMMA_DEFAULTS, gemma_decoder, gemma_mlp, gemma_norm
from jaxinfer.models.gemma2 import weights
from jaxinfer.models.hf_config import HfConfig
from jaxinfer.models.hf_multimodal import TEXT_NAMES, VISION_TENSORS, read_text_part
from jaxinfer.models.hf_rope import ropes_by_layer_type
from jaxinfer.models.hf_specs import attention, head_dim, num_layers, sliding_window, windowed
from jaxinfer.models.llama import IGNORED_TENSORS
from jaxinfer.models.weights import Family

#: The configs of the larger models leave out most of what is the same in all of them.
_DEFAULTS = {
    **GEMMA_DEFAULTS,
    "vocab_size": 262208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131072,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
_IGNORED_FIELDS = frozenset({"hidden_act"})
_VISION_FIELDS = frozenset(
    {
        "vision_config",
        "mm_tokens_per_image",
        "boi_token_index",
        "eoi_token_index",
        "image_token_index",
    }
)


def _read(fields: HfConfig) -> ModelConfig:
    return read_text_part(fields, _read_text, "gemma3_text", _DEFAULTS, _IGNORED_FIELDS)


def _read_text(fields: HfConfig) -> ModelConfig:
    dim, bias, norm = head_dim(fields), fields.flag("attention_bias", False), gemma_norm(fields)
    global_rope, local_rope = ropes_by_layer_type(fields, dim, theta=1e6, sliding_theta=1e4)
    mixer = attention(
        fields,
        dim,
        scale=fields.size("query_pre_attn_scalar") ** -0.5,
        rope=global_rope,
        softcap=fields.optional_positive("attn_logit_softcapping"),
        qk_norm=norm,
        qkv_bias=bias,
        out_bias=bias,
    )
    layer = LayerSpec(mixer=mixer, mlp=gemma_mlp(fields), pre_norm=norm, post_norm=norm)
    pattern = fields.size("sliding_window_pattern", fields.size("_sliding_window_pattern", 6))
    layers = windowed(
        fields, layer, num_layers(fields), sliding_window(fields), lambda i: (i + 1) % pattern != 0
    )
    softcap = fields.optional_positive("final_logit_softcapping")
    return gemma_decoder(fields, layers=with_local_rope(layers, local_rope), logit_softcap=softcap)


def with_local_rope(layers: tuple[LayerSpec, ...], rope: RopeSpec) -> tuple[LayerSpec, ...]:
    """The layers, those with a window having ``rope``."""
    return tuple(
        layer
        if layer.mixer.window is None
        else replace(layer, mixer=replace(layer.mixer, rope=rope))
        for layer in layers
    )


GEMMA3 = Family(
    name="gemma3",
    model_types=("gemma3_text", "gemma3"),
    read=_read,
    weights=weights,
    defaults=_DEFAULTS,
    ignored_fields=_IGNORED_FIELDS | _VISION_FIELDS,
    ignored_tensors=IGNORED_TENSORS + VISION_TENSORS,
    renamed=TEXT_NAMES,
)
