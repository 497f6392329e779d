"""SmolLM3: Llama with layers that have no rotary positions (NoPE, arXiv 2501.18795)."""

from dataclasses import replace

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


def _read(fields: HfConfig) -> ModelConfig:
    dim, bias, count = head_dim(fields), fields.flag("attention_bias", False), num_layers(fields)
    layer = LayerSpec(
        mixer=attention(fields, dim, rope=rope(fields, dim), qkv_bias=bias, out_bias=bias),
        mlp=gated_mlp(fields, bias=fields.flag("mlp_bias", False)),
        pre_norm=rms_norm(fields),
    )
    has_rope = _has_rope(fields, count)
    uses_window = fields.flag("use_sliding_window", False)
    window = sliding_window(fields) if uses_window else None
    layers = windowed(fields, layer, count, window, lambda i: not has_rope[i])
    layers = tuple(
        spec if rotates else replace(spec, mixer=replace(spec.attention, rope=None))
        for spec, rotates in zip(layers, has_rope, strict=True)
    )
    return decoder(fields, layers=layers, final_norm=rms_norm(fields))


def _has_rope(fields: HfConfig, count: int) -> list[bool]:
    """``no_rope_layers``, which in spite of its name has a 1 for each layer with rope."""
    interval = fields.size("no_rope_layer_interval", 4)
    flags = fields.get("no_rope_layers")
    if flags is None:
        return [(i + 1) % interval != 0 for i in range(count)]
    is_list = isinstance(flags, list | tuple) and len(flags) == count
    if not is_list or not all(flag in (0, 1) for flag in flags):
        raise fields.error("no_rope_layers", flags, f"{count} times 0 or 1")
    return list(map(bool, flags))


SMOLLM3 = Family(
    name="smollm3",
    model_types=("smollm3",),
    read=_read,
    weights=weights,
    defaults={"num_key_value_heads": 4, "rope_theta": 2e6, "tie_word_embeddings": True},
    ignored_fields=frozenset({"max_window_layers", "sliding_window"}),
    ignored_tensors=IGNORED_TENSORS,
)
