"""What a ``ModelConfig`` means: the decoder in plain numpy: float64, one sequence, no cache."""

import math
import statistics
from collections.abc import Mapping

import numpy as np

from jaxinfer.config import (
    AltUpSpec,
    AttentionSpec,
    LatentSpec,
    LayerInputSpec,
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
from tests.models.dense_latent import latent_attention


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
    inputs_LTI = _layer_inputs(config, params, tokens_T, x_TD)
    x_TD = _blocks(config, params, x_TD, inputs_LTI, max_len)
    x_TD = _norm(config.final_norm, params["final_norm"], x_TD)
    if config.tied_head:
        logits_TV = x_TD @ params["embed"].get("embedding").T
    else:
        logits_TV = _linear(params["head"], x_TD, config.head_bias)
    logits_TV = logits_TV * config.logit_scale
    return _softcap(config.logit_softcap, logits_TV)


def _blocks(
    config: ModelConfig,
    params: Params,
    x_TD: np.ndarray,
    inputs_LTI: list[np.ndarray],
    max_len: int,
) -> np.ndarray:
    held: list[tuple[np.ndarray, np.ndarray]] = []  # keys and values of each layer
    altup, streams = config.altup, [x_TD]
    if altup is not None:
        streams += [
            _as_large_as(x_TD, _linear(params[f"altup.first.{i}"], x_TD, bias=False))
            for i in range(altup.num_streams - 1)
        ]
    for i, spec in enumerate(config.layers):
        layer = params[f"layers.{i}"]
        if altup is not None:
            streams = altup_predict(altup, layer["altup"], streams)
        active = 0 if altup is None else altup.active
        out_TD = _block(spec, layer, streams[active], held, max_len)
        handed_on = out_TD
        streams = (
            [out_TD] if altup is None else altup_correct(altup, layer["altup"], streams, out_TD)
        )
        if altup is not None:
            handed_on = streams[active]
            if altup.scaled_output:
                handed_on = handed_on * layer["altup"].get("out_scale")
        if config.layer_input is not None:
            added_TD = _layer_input(config.layer_input, layer["input"], handed_on, inputs_LTI[i])
            first = 0 if altup is None else 1
            streams = [*streams[:first], *(stream + added_TD for stream in streams[first:])]
        if spec.learned_scale:
            streams = [stream * layer.get("scale") for stream in streams]
    for i in range(len(streams) - 1):
        projected = _linear(params[f"altup.last.{i}"], streams[i + 1], bias=False)
        streams[i + 1] = _as_large_as(streams[0], projected)
    return sum(streams) / len(streams)


def _block(
    spec: LayerSpec,
    params: Params,
    x_TD: np.ndarray,
    held: list[tuple[np.ndarray, np.ndarray]],
    max_len: int,
) -> np.ndarray:
    mixer_in = _norm(spec.pre_norm, params["mixer_norm"], x_TD)
    if isinstance(spec.mixer, LatentSpec):
        branch = _latent(spec.mixer, params["mixer"], mixer_in, max_len)
        held.append((np.empty(0), np.empty(0)))  # Nobody reads latents of another.
    else:
        shared = None if spec.kv_from is None else held[spec.kv_from]
        branch, kv = _attention(spec.mixer, params["mixer"], mixer_in, max_len, shared)
        held.append(kv)
    branch = _norm(spec.post_norm, params["mixer_post_norm"], branch)
    out_TD = x_TD + spec.residual_scale * branch
    if spec.laurel is not None:
        low = _linear(params["laurel.down"], mixer_in, bias=False)
        low = _linear(params["laurel.up"], low, bias=False)
        low = _norm(spec.laurel.norm, params["laurel.norm"], low)
        out_TD = (out_TD + mixer_in + low) / math.sqrt(2)
    assert spec.mlp is not None
    if spec.shared_norm:
        mlp_in = mixer_in
    else:
        norm = spec.pre_norm if spec.has_mlp_norm else None
        mlp_in = _norm(norm, params["mlp_norm"], x_TD if spec.parallel else out_TD)
    make = _moe if isinstance(spec.mlp, MoeSpec) else _mlp
    branch = _norm(spec.post_norm, params["mlp_post_norm"], make(spec.mlp, params["mlp"], mlp_in))
    return out_TD + spec.residual_scale * branch


def _layer_inputs(
    config: ModelConfig, params: Params, tokens_T: np.ndarray, x_TD: np.ndarray
) -> list[np.ndarray]:
    spec, num_layers = config.layer_input, len(config.layers)
    if spec is None:
        return []
    rows_T = np.where(tokens_T < spec.vocab_size, tokens_T, 0)
    table = params["layer_inputs.table"].get("embedding")[rows_T] * math.sqrt(spec.width)
    projected = _linear(params["layer_inputs.project"], x_TD, bias=False) / math.sqrt(config.width)
    parts = zip(np.split(table, num_layers, -1), np.split(projected, num_layers, -1), strict=True)
    norm = params["layer_inputs.norm"]
    return [(row + _norm(spec.norm, norm, part)) / math.sqrt(2) for row, part in parts]


def _layer_input(
    spec: LayerInputSpec, params: Params, x_TD: np.ndarray, input_TI: np.ndarray
) -> np.ndarray:
    gate = _activate(spec.activation, _linear(params["narrow"], x_TD, bias=False))
    return _norm(
        spec.post_norm, params["norm"], _linear(params["widen"], gate * input_TI, bias=False)
    )


def altup_predict(spec: AltUpSpec, params: Params, streams: list[np.ndarray]) -> list[np.ndarray]:
    """Each stream plus what it takes of all, token by token."""
    shares = _linear(params["prediction"], _shares(spec, params, streams[spec.active]), bias=False)
    count = spec.num_streams
    return [
        stream + sum(shares[:, u * count + v, None] * streams[v] for v in range(count))
        for u, stream in enumerate(streams)
    ]


def altup_correct(
    spec: AltUpSpec, params: Params, predicted: list[np.ndarray], out_TD: np.ndarray
) -> list[np.ndarray]:
    """Each stream plus its share of what the block found beyond the prediction."""
    shares = 1 + _linear(params["correction"], _shares(spec, params, out_TD), bias=False)
    news = out_TD - predicted[spec.active]
    return [stream + shares[:, u, None] * news for u, stream in enumerate(predicted)]


def _shares(spec: AltUpSpec, params: Params, x_TD: np.ndarray) -> np.ndarray:
    normed = _norm(spec.norm, params["router_norm"], x_TD) / x_TD.shape[-1]
    return np.tanh(_linear(params["router"], normed, bias=False))


def _as_large_as(model_TD: np.ndarray, x_TD: np.ndarray) -> np.ndarray:
    wanted = np.sqrt((model_TD**2).mean(axis=-1, keepdims=True))
    found = np.sqrt(np.maximum((x_TD**2).mean(axis=-1, keepdims=True), 1e-5))
    return x_TD * wanted / found


def _attention(
    spec: AttentionSpec,
    params: Params,
    x_TD: np.ndarray,
    max_len: int,
    shared: tuple[np.ndarray, np.ndarray] | None,
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    def heads(name: str, count: int) -> np.ndarray:
        kernel = "k" if name == "v" and spec.v_from_k else name
        x_TX = _linear(params[kernel], x_TD, spec.qkv_bias)
        x_TXH = x_TX.reshape(len(x_TD), count, spec.head_dim)
        clip = np.inf if spec.qkv_clip is None else spec.qkv_clip
        if name == "v":
            return _norm(spec.v_norm, params["v_norm"], x_TXH.clip(-clip, clip))
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
    held = shared or (heads("k", spec.num_kv_heads), heads("v", spec.num_kv_heads))
    k_TNH, v_TNH = (x_TKH.repeat(group, axis=1) for x_TKH in held)
    logits_NTU = np.einsum("TNH,UNH->NTU", q_TNH, k_TNH) * spec.softmax_scale
    logits_NTU = np.where(_mask(spec, len(x_TD)), _softcap(spec.softcap, logits_NTU), -np.inf)
    if spec.sinks:  # One more column, which everyone sees and which holds nothing.
        sinks_NT1 = np.tile(params.get("sinks")[:, None, None], (1, len(x_TD), 1))
        logits_NTU = np.concatenate((logits_NTU, sinks_NT1), axis=-1)
    weights_NTU = np.exp(logits_NTU - logits_NTU.max(axis=-1, keepdims=True))
    weights_NTU /= weights_NTU.sum(axis=-1, keepdims=True)
    weights_NTU = weights_NTU[:, :, : len(x_TD)]
    out_TNH = np.einsum("NTU,UNH->TNH", weights_NTU, v_TNH)
    return _linear(params["o"], out_TNH.reshape(len(x_TD), -1), spec.out_bias), held


def _latent(spec: LatentSpec, params: Params, x_TD: np.ndarray, max_len: int) -> np.ndarray:
    norms = {"q_norm": spec.query_norm, "kv_norm": spec.latent_norm}
    return latent_attention(
        spec,
        x_TD,
        linear=lambda name, x, bias: _linear(params[name], x, bias),
        norm=lambda name, x: _norm(norms[name], params[name], x),
        rotate=lambda x_TNr: _rotate(spec.rope, x_TNr, max_len),
        kernel=lambda name: params[name].get("kernel"),
    )


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
    part_norm = spec.part_norm
    routed_TD = _norm(part_norm, params["router_norm"], x_TD)
    logits_TE = _linear(params["router"], routed_TD, spec.router.bias) * spec.router.logit_scale
    scale_E = params.get("expert_scale") if spec.router.expert_scale else np.ones_like(logits_TE[0])
    correction_E = params.get("correction") if spec.router.correction else None
    experts = [params["experts"].of_expert(e) for e in range(spec.router.num_experts)]
    out_TD = np.zeros_like(x_TD)
    expert_in_TD = _norm(part_norm, params["expert_norm"], x_TD)
    for out_D, x_D, logits_E in zip(out_TD, expert_in_TD, logits_TE, strict=True):
        for expert, weight in routed(spec.router, logits_E, correction_E).items():
            weight = weight * scale_E[expert]
            if spec.weigh_input:
                out_D += _mlp(spec.expert, experts[expert], weight * x_D)
            else:
                out_D += weight * _mlp(spec.expert, experts[expert], x_D)
    out_TD = _norm(part_norm, params["expert_post_norm"], out_TD)
    if spec.shared is not None:
        shared_in_TD = _norm(part_norm, params["shared_norm"], x_TD)
        shared_TD = _mlp(spec.shared, params["shared"], shared_in_TD)
        shared_TD = _norm(part_norm, params["shared_post_norm"], shared_TD)
        if spec.shared_gate:
            shared_TD = shared_TD / (1 + np.exp(-_linear(params["shared_gate"], x_TD, bias=False)))
        out_TD = out_TD + shared_TD
    return out_TD


def _mlp(spec: MlpSpec, params: Params, x_TD: np.ndarray) -> np.ndarray:
    hidden = _linear(params["up"], x_TD, spec.bias)
    if spec.gated:
        gate, limit = _linear(params["gate"], x_TD, spec.bias), spec.limit or np.inf
        if spec.sparsity:
            cut = gate.mean(axis=-1, keepdims=True) + gate.std(axis=-1, keepdims=True) * (
                statistics.NormalDist().inv_cdf(spec.sparsity)
            )
            gate = np.maximum(gate - cut, 0.0)
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
