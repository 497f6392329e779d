"""GPT-2: learned positions, LayerNorm, a tied head; its linear layers are stored ``[in, out]``."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from jaxinfer.config import AttentionSpec, LayerSpec, MlpSpec, ModelConfig
from jaxinfer.models.hf_config import MAX_LEN, HfConfig
from jaxinfer.models.hf_specs import decoder, layer_norm, num_layers
from jaxinfer.models.weights import Family, WeightRule, embedding, linear, norm

_LAYER = "transformer.h.{i}."
_IGNORED_FIELDS = frozenset(
    {
        "n_ctx",
        "reorder_and_upcast_attn",
        "summary_type",
        "summary_use_proj",
        "summary_activation",
        "summary_proj_to_labels",
        "summary_first_dropout",
    }
)


def _read(fields: HfConfig) -> ModelConfig:
    width, num_positions = fields.size("n_embd"), fields.size("n_positions", most=MAX_LEN)
    norms = layer_norm(fields, "layer_norm_epsilon", bias=True)
    mlp = MlpSpec(
        width=fields.size("n_inner", 4 * width),
        activation=fields.activation("activation_function"),
        gated=False,
        bias=True,
    )
    layer = LayerSpec(mixer=_attention(fields, width), mlp=mlp, pre_norm=norms)
    layers = (layer,) * num_layers(fields, "n_layer")
    if fields.flag("scale_attn_by_inverse_layer_idx", False):
        layers = tuple(_scaled_down(layer, i + 1) for i in range(len(layers)))
    return decoder(
        fields,
        layers=layers,
        final_norm=norms,
        width=width,
        max_len=num_positions,
        learned_positions=num_positions,
        fused_kv=True,
    )


def _attention(fields: HfConfig, width: int) -> AttentionSpec:
    num_heads = fields.size("n_head")
    if width % num_heads:
        raise fields.error("n_head", num_heads, f"a divisor of n_embd = {width}")
    return AttentionSpec(
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=width // num_heads,
        scale=None if fields.flag("scale_attn_weights", True) else 1.0,
        qkv_bias=True,
        out_bias=True,
    )


def _scaled_down(layer: LayerSpec, divisor: int) -> LayerSpec:
    scale = layer.mixer.softmax_scale / divisor
    return replace(layer, mixer=replace(layer.mixer, scale=scale))


def _weights(config: ModelConfig) -> Iterator[WeightRule]:
    layer = config.layers[0]
    yield embedding("embed", "transformer.wte")
    yield embedding("positions", "transformer.wpe")
    yield from norm("final_norm", "transformer.ln_f", config.final_norm)
    if not config.tied_head:
        yield from linear("head", "lm_head")
    yield from norm("layers.{i}.mixer_norm", _LAYER + "ln_1", layer.pre_norm)
    for part in range(3):
        target = f"layers.{{i}}.mixer.{'qkv'[part]}"
        yield from _conv1d(target, "attn.c_attn", _qkv_columns(part))
    yield from _conv1d("layers.{i}.mixer.o", "attn.c_proj", _as_stored)
    yield from norm("layers.{i}.mlp_norm", _LAYER + "ln_2", layer.pre_norm)
    yield from _conv1d("layers.{i}.mlp.up", "mlp.c_fc", _as_stored)
    yield from _conv1d("layers.{i}.mlp.down", "mlp.c_proj", _as_stored)


_Transform = Callable[[np.ndarray, ModelConfig, int], np.ndarray]


def _conv1d(target: str, source: str, transform: _Transform) -> Iterator[WeightRule]:
    """Kernel and bias of a Conv1D, which is a linear layer stored in our own orientation."""
    weight, bias = f"{_LAYER}{source}.weight", f"{_LAYER}{source}.bias"
    yield WeightRule(target=f"{target}.kernel", source=weight, transform=transform)
    yield WeightRule(target=f"{target}.bias", source=bias, transform=transform)


def _as_stored(tensor: np.ndarray, config: ModelConfig, layer: int) -> np.ndarray:
    return tensor


def _qkv_columns(part: int) -> _Transform:
    """The columns of q (part 0), k (1) or v (2): one beside the other."""

    def columns(fused: np.ndarray, config: ModelConfig, layer: int) -> np.ndarray:
        return fused[..., part * config.width : (part + 1) * config.width]

    return columns


GPT2 = Family(
    name="gpt2",
    model_types=("gpt2",),
    read=_read,
    weights=_weights,
    defaults={"activation_function": "gelu_new", "tie_word_embeddings": True},
    ignored_fields=_IGNORED_FIELDS,
    ignored_tensors=(
        r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",
        r"lm_head\.weight",
    ),
    renamed=((r"^(wte|wpe|h|ln_f)\.", r"transformer.\1."),),
)
