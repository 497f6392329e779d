"""GPT-NeoX and Pythia (arXiv 2204.06745): parallel residual, LayerNorm, partial rope."""

from collections.abc import Callable, Iterator

import numpy as np

from jaxinfer.config import LayerSpec, MlpSpec, ModelConfig
from jaxinfer.models.hf_config import HfConfig
from jaxinfer.models.hf_rope import rope, rope_base, turning_share
from jaxinfer.models.hf_specs import attention, decoder, head_dim, layer_norm, num_layers
from jaxinfer.models.weights import Family, WeightRule, embedding, linear, norm

_LAYER = "gpt_neox.layers.{i}."


def _read(fields: HfConfig) -> ModelConfig:
    dim, bias = head_dim(fields), fields.flag("attention_bias", True)
    norms = layer_norm(fields, bias=True)
    rope_spec = rope(
        fields,
        dim,
        theta=rope_base(fields, "rotary_emb_base", 10000.0),
        rotary_share=turning_share(fields, "rotary_pct", 0.25),
    )
    mlp = MlpSpec(
        width=fields.size("intermediate_size"),
        activation=fields.activation("hidden_act"),
        gated=False,
        bias=True,
    )
    layer = LayerSpec(
        mixer=attention(fields, dim, rope=rope_spec, qkv_bias=bias, out_bias=bias),
        mlp=mlp,
        pre_norm=norms,
        parallel=fields.flag("use_parallel_residual", True),
    )
    layers = (layer,) * num_layers(fields)
    return decoder(fields, layers=layers, final_norm=norms, fused_kv=True)


def _weights(config: ModelConfig) -> Iterator[WeightRule]:
    layer = config.layers[0]
    yield embedding("embed", "gpt_neox.embed_in")
    yield from norm("final_norm", "gpt_neox.final_layer_norm", config.final_norm)
    if not config.tied_head:
        yield from linear("head", "embed_out")
    yield from norm("layers.{i}.mixer_norm", _LAYER + "input_layernorm", layer.pre_norm)
    for part in range(3):
        yield from _fused_part(part, layer.attention.qkv_bias)
    dense = _LAYER + "attention.dense"
    yield from linear("layers.{i}.mixer.o", dense, bias=layer.mixer.out_bias)
    yield from norm("layers.{i}.mlp_norm", _LAYER + "post_attention_layernorm", layer.pre_norm)
    yield from linear("layers.{i}.mlp.up", _LAYER + "mlp.dense_h_to_4h", bias=True)
    yield from linear("layers.{i}.mlp.down", _LAYER + "mlp.dense_4h_to_h", bias=True)


def _fused_part(part: int, bias: bool) -> Iterator[WeightRule]:
    """q (part 0), k (1) or v (2) out of the one tensor of all three."""
    target, source = f"layers.{{i}}.mixer.{'qkv'[part]}", _LAYER + "attention.query_key_value"
    pick = _pick(part)
    yield WeightRule(target=f"{target}.kernel", source=f"{source}.weight", transform=pick)
    if bias:
        yield WeightRule(target=f"{target}.bias", source=f"{source}.bias", transform=pick)


def _pick(part: int) -> Callable[[np.ndarray, ModelConfig, int], np.ndarray]:
    """Rows are grouped by head, in a head by q, k, v: those of one part, as kernel or bias."""

    def pick(fused: np.ndarray, config: ModelConfig, layer: int) -> np.ndarray:
        mixer = config.layers[layer].attention
        grouped = fused.reshape(mixer.num_heads, 3, mixer.head_dim, *fused.shape[1:])
        return grouped[:, part].reshape(-1, *fused.shape[1:]).T

    return pick


GPT_NEOX = Family(
    name="gpt_neox",
    model_types=("gpt_neox",),
    read=_read,
    weights=_weights,
    defaults={"hidden_act": "gelu"},
    ignored_tensors=(
        r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
        r"embed_out\.weight",
    ),
    renamed=((r"^lm_head\.", "embed_out."),),
)
