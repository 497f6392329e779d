"""What a ``ModelConfig`` means: the decoder in plain numpy: float64, one sequence, no cache."""

import math
from collections.abc import Mapping

import numpy as np

from jaxinfer.config import (
    AttentionSpec,
    LayerSpec,
    MlpSpec,
    ModelConfig,
    MoeSpec,
    NormSpec,
    QueryTemperature,
    RopeSpec,
)
from jaxinfer.ops.rope import frequencies
from tests.models.dense_experts import routed


class Params:
    """Parameters by path, below a prefix: ``params["mixer.q"].get("bias")``."""

    def __init__(self, arrays: Mapping[str, np.ndarray], prefix: str = ""):
        self._arrays, self._prefix = arrays, prefix

    def __getitem__(self, path: str) -> "Params":
        return Params(self._arrays, f"{self._prefix}{path}.")

    def get(self, name: str) -> np.ndarray:
        """One parameter in float64."""
        return self._arrays[self._prefix + name].astype(np.float64)

    def of_expert(self, expert: int) -> "Params":
        """The same parameters, of one of the experts that are stacked in them."""
        below = {n: a for n, a in self._arrays.items() if n.startswith(self._prefix)}
        return Params({name: array[expert] for name, array in below.items()}, self._prefix)


def dense_logits(
    config: ModelConfig, arrays: Mapping[str, np.ndarray], tokens_T: np.ndarray, max_len: int
) -> np.ndarray:
    """Float64 logits ``[T, V]``."""
    params = Params(arrays)
    x_TD = params["embed"].get("embedding")[tokens_T] * config.embed_scale
    if config.learned_positions is not None:
        x_TD = x_TD + params["positions"].get("embedding")[: len(tokens_T)]
    for i, spec in enumerate(config.layers):
        x_TD = _block(spec, params[f"layers.{i}"], x_TD, max_len)
    x_TD = _norm(config.final_norm, params["final_norm"], x_TD)
    if config.tied_head:
        logits_TV = x_TD @ params["embed"].get("embedding").T
    else:
        logits_TV = _linear(params["head"], x_TD, config.head_bias)
    logits_TV = logits_TV * config.logit_scale
    return _softcap(config.logit_softcap, logits_TV)


def _block(spec: LayerSpec, params: Params, x_TD: np.ndarray, max_len: int) -> np.ndarray:
    mixer_in = _norm(spec.pre_norm, params["mixer_norm"], x_TD)
    branch = _attention(spec.mixer, params["mixer"], mixer_in, max_len)
    branch = _norm(spec.post_norm, params["mixer_post_norm"], branch)
    out_TD = x_TD + spec.residual_scale * branch
    assert spec.mlp is not None
    if spec.shared_norm:
        mlp_in = mixer_in
    else:
        mlp_in = _norm(spec.pre_norm, params["mlp_norm"], x_TD if spec.parallel else out_TD)
    make = _moe if isinstance(spec.mlp, MoeSpec) else _mlp
    branch = _norm(spec.post_norm, params["mlp_post_norm"], make(spec.mlp, params["mlp"], mlp_in))
    return out_TD + spec.residual_scale * branch


def _attention(spec: AttentionSpec, params: Params, x_TD: np.ndarray, max_len: int) -> np.ndarray:
    def heads(name: str, count: int) -> np.ndarray:
        x_TX = _linear(params[name], x_TD, spec.qkv_bias)
        x_TXH = x_TX.reshape(len(x_TD), count, spec.head_dim)
        clip = np.inf if spec.qkv_clip is None else spec.qkv_clip
        if name == "v":
            return x_TXH.clip(-clip, clip)
        if spec.qk_norm_over == "all":
            x_TX = _norm(spec.qk_norm, params[f"{name}_norm"], x_TX)
            x_TXH = x_TX.reshape(x_TXH.shape)
        elif not spec.qk_norm_after_rope:
            x_TXH = _norm(spec.qk_norm, params[f"{name}_norm"], x_TXH)
        x_TXH = x_TXH.clip(-clip, clip)
        if spec.rope is not None:
            x_TXH = _rotate(spec.rope, x_TXH, max_len)
        return (
            _norm(spec.qk_norm, params[f"{name}_norm"], x_TXH) if spec.qk_norm_after_rope else x_TXH
        )

    group = spec.num_heads // spec.num_kv_heads
    q_TNH = heads("q", spec.num_heads)
    if spec.query_temperature is not None:
        q_TNH = q_TNH * _query_scale(spec.query_temperature, len(x_TD))[:, None, None]
    k_TNH = heads("k", spec.num_kv_heads).repeat(group, axis=1)
    v_TNH = heads("v", spec.num_kv_heads).repeat(group, axis=1)
    logits_NTU = np.einsum("TNH,UNH->NTU", q_TNH, k_TNH) * spec.softmax_scale
    logits_NTU = np.where(_mask(spec, len(x_TD)), _softcap(spec.softcap, logits_NTU), -np.inf)
    if spec.sinks:  # One more column, which everyone sees and which holds nothing.
        sinks_NT1 = np.tile(params.get("sinks")[:, None, None], (1, len(x_TD), 1))
        logits_NTU = np.concatenate((logits_NTU, sinks_NT1), axis=-1)
    weights_NTU = np.exp(logits_NTU - logits_NTU.max(axis=-1, keepdims=True))
    weights_NTU /= weights_NTU.sum(axis=-1, keepdims=True)
    weights_NTU = weights_NTU[:, :, : len(x_TD)]
    out_TNH = np.einsum("NTU,UNH->TNH", weights_NTU, v_TNH)
    return _linear(params["o"], out_TNH.reshape(len(x_TD), -1), spec.out_bias)


def _mask(spec: AttentionSpec, length: int) -> np.ndarray:
    position = np.arange(length)
    distance = position[:, None] - position
    is_seen = (distance >= 0) & (distance < (spec.window or length))
    nth_chunk = position // (spec.chunk or length)
    return is_seen & (nth_chunk[:, None] == nth_chunk)


def _query_scale(spec: QueryTemperature, length: int) -> np.ndarray:
    steps_T = np.floor((np.arange(length) + spec.offset) / spec.interval)
    return 1 + spec.beta * np.log(1 + steps_T)


def _rotate(spec: RopeSpec, x_TNH: np.ndarray, max_len: int) -> np.ndarray:
    radians_h, factor = frequencies(spec, max_len)
    angles_T1h = np.arange(len(x_TNH))[:, None, None] * radians_h
    cos, sin = factor * np.cos(angles_T1h), factor * np.sin(angles_T1h)
    half = spec.rotary_dim // 2
    x_TNH = x_TNH.copy()
    dims = np.arange(spec.rotary_dim)
    first, second = (dims[0::2], dims[1::2]) if spec.interleaved else (dims[:half], dims[half:])
    a, b = x_TNH[..., first], x_TNH[..., second]
    x_TNH[..., first], x_TNH[..., second] = a * cos - b * sin, b * cos + a * sin
    return x_TNH


def _moe(spec: MoeSpec, params: Params, x_TD: np.ndarray) -> np.ndarray:
    logits_TE = _linear(params["router"], x_TD, spec.router.bias)
    correction_E = params.get("correction") if spec.router.correction else None
    experts = [params["experts"].of_expert(e) for e in range(spec.router.num_experts)]
    out_TD = np.zeros_like(x_TD)
    for out_D, x_D, logits_E in zip(out_TD, x_TD, logits_TE, strict=True):
        for expert, weight in routed(spec.router, logits_E, correction_E).items():
            if spec.weigh_input:
                out_D += _mlp(spec.expert, experts[expert], weight * x_D)
            else:
                out_D += weight * _mlp(spec.expert, experts[expert], x_D)
    if spec.shared is not None:
        shared_TD = _mlp(spec.shared, params["shared"], x_TD)
        if spec.shared_gate:
            shared_TD = shared_TD / (1 + np.exp(-_linear(params["shared_gate"], x_TD, bias=False)))
        out_TD += shared_TD
    return out_TD


def _mlp(spec: MlpSpec, params: Params, x_TD: np.ndarray) -> np.ndarray:
    hidden = _linear(params["up"], x_TD, spec.bias)
    if spec.gated:
        gate, limit = _linear(params["gate"], x_TD, spec.bias), spec.limit or np.inf
        gate, hidden = np.minimum(gate, limit), np.clip(hidden, -limit, limit) + spec.up_offset
        # Swish of beta x is beta times that of x with this beta.
        gate = _activate(spec.activation, spec.swish_beta * gate) / spec.swish_beta
        return _linear(params["down"], gate * hidden, spec.bias)
    return _linear(params["down"], _activate(spec.activation, hidden), spec.bias)


def _activate(kind: str, x: np.ndarray) -> np.ndarray:
    if kind == "silu":
        return x / (1 + np.exp(-x))
    if kind == "gelu":
        return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2
    if kind in ("relu", "relu2"):
        return np.maximum(x, 0) ** (2 if kind == "relu2" else 1)
    assert kind == "gelu_tanh"
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def _norm(spec: NormSpec | None, params: Params, x: np.ndarray) -> np.ndarray:
    if spec is None:
        return x
    if spec.kind == "layer":
        x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + spec.eps)
    if spec.weight:
        x = x * (params.get("scale") + (1.0 if spec.unit_offset else 0.0))
    return x + params.get("bias") if spec.bias else x


def _linear(params: Params, x: np.ndarray, bias: bool) -> np.ndarray:
    x = x @ params.get("kernel")
    return x + params.get("bias") if bias else x


def _softcap(cap: float | None, logits: np.ndarray) -> np.ndarray:
    return logits if cap is None else cap * np.tanh(logits / cap)
