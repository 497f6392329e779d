"""Gemma 3n text: four residual streams (AltUp), LAuReL, an input for each layer, shared KV.

The last layers read the keys and values of earlier ones; the gates of the first layers are sparse.
Of a multimodal checkpoint the language model is taken.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from jaxinfer.config import (
    AltUpSpec,
    LaurelSpec,
    LayerInputSpec,
    LayerSpec,
    MlpSpec,
    ModelConfig,
)
from jaxinfer.models.gemma2 import weights as gemma_weights
from jaxinfer.models.gemma3 import with_local_rope
from jaxinfer.models.hf_config import GEMMA_ACTIVATIONS, MAX_VOCAB, MAX_WIDTH, HfConfig
from jaxinfer.models.hf_multimodal import TEXT_NAMES, read_text_part
from jaxinfer.models.hf_rope import ropes_by_layer_type
from jaxinfer.models.hf_specs import (
    attention,
    decoder,
    head_dim,
    last_share_kv,
    num_layers,
    rms_norm,
    sliding_window,
    windowed,
)
from jaxinfer.models.llama import IGNORED_TENSORS, LAYER
from jaxinfer.models.weights import Family, WeightRule, embedding, linear, norm

_DEFAULTS: dict[str, Any] = {
    "vocab_size": 262400,
    "head_dim": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "sliding_window": 512,
    "final_logit_softcapping": 30.0,
    "vocab_size_per_layer_input": 262144,
    "hidden_size_per_layer_input": 256,
    "laurel_rank": 64,
}
#: Of training, and one that goes unused: queries are normed, and not scaled.
_IGNORED_FIELDS = frozenset({"altup_coef_clip", "altup_lr_multiplier", "query_pre_attn_scalar"})
#: Fields and tensors of what sees and hears.
SENSES_FIELDS = frozenset(
    {
        "vision_config",
        "audio_config",
        "image_token_id",
        "audio_token_id",
        "boi_token_id",
        "eoi_token_id",
        "boa_token_id",
        "eoa_token_id",
        "eoa_token_index",
        "vision_soft_tokens_per_image",
        "audio_soft_tokens_per_image",
    }
)
SENSES_TENSORS = r"(model\.)?(vision_tower|audio_tower|embed_vision|embed_audio)\..*"
#: What layers that share keys and values carry along, and nobody reads.
UNREAD_KV = r"model\.layers\.\d+\.self_attn\.(k_proj|v_proj|k_norm|v_norm)\..*"


def _read(fields: HfConfig) -> ModelConfig:
    return read_text_part(fields, _read_text, "gemma3n_text", _DEFAULTS, _IGNORED_FIELDS)


def _read_text(fields: HfConfig) -> ModelConfig:
    dim, bias, norms = head_dim(fields), fields.flag("attention_bias", False), rms_norm(fields)
    global_rope, local_rope = ropes_by_layer_type(fields, dim, theta=1e6, sliding_theta=1e4)
    mixer = attention(
        fields,
        dim,
        scale=1.0,
        rope=global_rope,
        qk_norm=norms,
        v_norm=replace(norms, weight=False),
        qkv_bias=bias,
        out_bias=bias,
    )
    rank = fields.size("laurel_rank")
    mlps = _mlps(fields, num_layers(fields))
    layer = LayerSpec(
        mixer=mixer,
        mlp=mlps[0],
        pre_norm=norms,
        post_norm=norms,
        laurel=LaurelSpec(rank=rank, norm=norms),
    )
    window = sliding_window(fields)
    layers = windowed(fields, layer, len(mlps), window, lambda i: (i + 1) % 5 != 0)
    layers = with_local_rope(layers, local_rope)
    layers = tuple(replace(layer, mlp=mlp) for layer, mlp in zip(layers, mlps, strict=True))
    return decoder(
        fields,
        layers=last_share_kv(fields, layers, default=15),
        final_norm=norms,
        embed_scale=math.sqrt(fields.size("hidden_size")),
        logit_softcap=fields.optional_positive("final_logit_softcapping"),
        altup=_altup(fields),
        layer_input=layer_input(fields),
    )


def _mlps(fields: HfConfig, count: int) -> list[MlpSpec]:
    """The MLP of each layer: ``intermediate_size`` is one number, or one a layer."""
    width = fields.get("intermediate_size")
    if isinstance(width, list | tuple):
        is_size = all(isinstance(w, int) and not isinstance(w, bool) for w in width)
        if not is_size or len(width) != count or not all(0 < w <= MAX_WIDTH for w in width):
            allowed = f"a whole number from 1 to {MAX_WIDTH}, or {count} of them"
            raise fields.error("intermediate_size", width, allowed)
        widths = list(width)
    else:
        widths = [fields.size("intermediate_size")] * count
    sparse = fields.get("activation_sparsity_pattern")
    if sparse is None:
        sparse = [0.95 if count > 10 and i < 10 else 0.0 for i in range(count)]
    is_list = isinstance(sparse, list | tuple) and len(sparse) == count
    if not is_list or not all(isinstance(s, int | float) and 0 <= s < 1 for s in sparse):
        allowed = f"{count} numbers from 0 to below 1"
        raise fields.error("activation_sparsity_pattern", sparse, allowed)
    activation = fields.activation("hidden_activation", GEMMA_ACTIVATIONS)
    return [
        MlpSpec(width=width, activation=activation, sparsity=float(share))
        for width, share in zip(widths, sparse, strict=True)
    ]


def _altup(fields: HfConfig) -> AltUpSpec:
    num_streams = fields.size("altup_num_inputs", 4, most=64)
    if num_streams < 2:
        raise fields.error("altup_num_inputs", num_streams, "from 2 to 64")
    active = fields.count("altup_active_idx", 0, most=num_streams - 1)
    scaled = fields.flag("altup_correct_scale", True)
    return AltUpSpec(
        num_streams=num_streams, norm=rms_norm(fields), active=active, scaled_output=scaled
    )


def layer_input(fields: HfConfig) -> LayerInputSpec:
    """The input of each layer, as Gemma 3n and 4 state it."""
    norms = rms_norm(fields)
    return LayerInputSpec(
        width=fields.size("hidden_size_per_layer_input"),
        vocab_size=fields.size("vocab_size_per_layer_input", most=MAX_VOCAB),
        activation=fields.activation("hidden_activation", GEMMA_ACTIVATIONS),
        norm=norms,
        post_norm=norms,
    )


def _weights(config: ModelConfig) -> Iterator[WeightRule]:
    yield from gemma_weights(config)
    yield from layer_input_weights(config)
    altup, laurel = config.altup, config.layers[0].laurel
    assert altup is not None
    assert laurel is not None
    for i in range(altup.num_streams - 1):
        yield from linear(f"altup.first.{i}", f"model.altup_projections.{i}")
        yield from linear(f"altup.last.{i}", f"model.altup_unembed_projections.{i}")
    ours, theirs = "layers.{i}.altup.", LAYER + "altup."
    yield from norm(ours + "router_norm", theirs + "router_norm", altup.norm)
    yield from linear(ours + "router", theirs + "modality_router")
    yield from linear(ours + "prediction", theirs + "prediction_coefs")
    yield from linear(ours + "correction", theirs + "correction_coefs")
    yield WeightRule(target=ours + "out_scale", source=theirs + "correct_output_scale")
    ours, theirs = "layers.{i}.laurel.", LAYER + "laurel."
    yield from linear(ours + "down", theirs + "linear_left")
    yield from linear(ours + "up", theirs + "linear_right")
    yield from norm(ours + "norm", theirs + "post_laurel_norm", laurel.norm)


def layer_input_weights(config: ModelConfig) -> Iterator[WeightRule]:
    """The table and projection of all layers, and what each layer does with its input."""
    spec = config.layer_input
    if spec is None:
        return
    yield embedding("layer_inputs.table", "model.embed_tokens_per_layer")
    yield from linear("layer_inputs.project", "model.per_layer_model_projection")
    yield from norm("layer_inputs.norm", "model.per_layer_projection_norm", spec.norm)
    yield from linear("layers.{i}.input.narrow", LAYER + "per_layer_input_gate")
    yield from linear("layers.{i}.input.widen", LAYER + "per_layer_projection")
    yield from norm("layers.{i}.input.norm", LAYER + "post_per_layer_input_norm", spec.post_norm)


GEMMA3N = Family(
    name="gemma3n",
    model_types=("gemma3n_text", "gemma3n"),
    read=_read,
    weights=_weights,
    defaults=_DEFAULTS,
    ignored_fields=_IGNORED_FIELDS | SENSES_FIELDS,
    ignored_tensors=(*IGNORED_TENSORS, SENSES_TENSORS, UNREAD_KV),
    renamed=TEXT_NAMES,
)
