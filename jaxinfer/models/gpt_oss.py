"""gpt-oss 20b, 120b (arXiv 2508.10925): every other layer with a window, sinks, clamped experts.

Published checkpoints hold the experts in MXFP4; a source shows them as the matrices they stand for.
"""

from collections.abc import Callable, Iterator

import numpy as np

from jaxinfer.config import LayerSpec, MlpSpec, ModelConfig, MoeSpec
from jaxinfer.models.hf_config import HfConfig
from jaxinfer.models.hf_experts import BALANCING_FIELDS, router
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
from jaxinfer.models.llama import IGNORED_TENSORS, LAYER, weights
from jaxinfer.models.weights import Family, WeightRule, linear

_EXPERTS = LAYER + "mlp.experts."
_DEFAULTS = {
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "head_dim": 64,
    "num_key_value_heads": 8,
    "sliding_window": 128,
    "rope_theta": 150000.0,
}

#: Where a config states no rope.
_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def _read(fields: HfConfig) -> ModelConfig:
    # What its first converter wrote beside the field that counts.
    fields.only("experts_per_token", None, fields.size("num_experts_per_tok"))
    fields.only("hidden_act", "silu")
    dim, norms, bias = (
        head_dim(fields),
        rms_norm(fields, eps=1e-5),
        fields.flag("attention_bias", True),
    )
    turning = rope(fields, dim, unstated=_ROPE)
    mixer = attention(fields, dim, rope=turning, qkv_bias=bias, out_bias=bias, sinks=True)
    expert = MlpSpec(
        width=fields.size("intermediate_size"),
        bias=True,
        limit=fields.positive("swiglu_limit", 7.0),
        swish_beta=fields.positive("swiglu_alpha", 1.702),
        up_offset=1.0,
    )
    # The softmax over the chosen logits alone is that over all of them, divided by its sum.
    chosen = router(fields, "num_local_experts", "num_experts", bias=True)
    layer = LayerSpec(mixer=mixer, mlp=MoeSpec(router=chosen, expert=expert), pre_norm=norms)
    window = sliding_window(fields)
    layers = windowed(fields, layer, num_layers(fields), window, lambda i: i % 2 == 0)
    return decoder(fields, layers=layers, final_norm=norms, decodes=("mxfp4",))


def _weights(config: ModelConfig) -> Iterator[WeightRule]:
    yield from weights(config)
    yield WeightRule(target="layers.{i}.mixer.sinks", source=LAYER + "self_attn.sinks")
    yield from linear("layers.{i}.mlp.router", LAYER + "mlp.router", bias=True)
    # Stacked as [E, in, out] already; the columns of gate and up take turns.
    for part, source, pick in (
        ("gate", "gate_up_proj", _every_other(0)),
        ("up", "gate_up_proj", _every_other(1)),
        ("down", "down_proj", _as_it_is),
    ):
        target = f"layers.{{i}}.mlp.experts.{part}"
        yield WeightRule(target=f"{target}.kernel", source=_EXPERTS + source, transform=pick)
        yield WeightRule(target=f"{target}.bias", source=f"{_EXPERTS}{source}_bias", transform=pick)


def _every_other(first: int) -> Callable[[np.ndarray, ModelConfig, int], np.ndarray]:
    return lambda tensor, config, layer: tensor[..., first::2]


def _as_it_is(tensor: np.ndarray, config: ModelConfig, layer: int) -> np.ndarray:
    return tensor


GPT_OSS = Family(
    name="gpt_oss",
    model_types=("gpt_oss",),
    read=_read,
    weights=_weights,
    defaults=_DEFAULTS,
    ignored_fields=BALANCING_FIELDS | {"initial_context_length"},
    ignored_tensors=IGNORED_TENSORS,
)
