"""A model is data: what a decoder is made of, said in frozen specs.

``ModelConfig.layers`` is a tuple of ``LayerSpec(mixer, mlp)``; the one ``Decoder`` of
``jaxinfer.models`` builds any stack from it. A family file (``jaxinfer/models/<family>.py``)
translates a Hugging Face ``config.json`` into these specs and has no forward pass of its own. Every
spec checks itself when it is made and raises ``ConfigError`` with the field's name.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from jaxinfer.errors import ConfigError

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"]
NormKind = Literal["rms", "layer"]
RouterScores = Literal["softmax", "sigmoid", "sparsemixer"]
GroupScore = Literal["max", "top2"]


def _require(condition: bool, field: str, value: object, allowed: str) -> None:
    if not condition:
        raise ConfigError(f"{field} = {value!r} is not allowed: it must be {allowed}")


def _positive(owner: object, *fields: str) -> None:
    for field in fields:
        value = getattr(owner, field)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        is_positive = is_number and math.isfinite(value) and value > 0
        _require(is_positive, f"{type(owner).__name__}.{field}", value, "a number above 0")


@dataclass(frozen=True, kw_only=True)
class NormSpec:
    """RMSNorm (arXiv 1910.07467) or LayerNorm (arXiv 1607.06450), computed in float32.

    ``unit_offset``: the stored weight ``w`` is used as ``1 + w`` (the Gemma kind).
    """

    kind: NormKind = "rms"
    eps: float = 1e-6
    unit_offset: bool = False
    bias: bool = False

    def __post_init__(self) -> None:
        _require(self.kind in get_args(NormKind), "norm kind", self.kind, "'rms' or 'layer'")
        _positive(self, "eps")
        _require(not (self.kind == "rms" and self.bias), "norm bias", self.bias, "False for 'rms'")


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Position interpolation (arXiv 2306.15595): every frequency divided by ``factor``."""

    factor: float

    def __post_init__(self) -> None:
        _positive(self, "factor")


@dataclass(frozen=True, kw_only=True)
class DynamicScaling:
    """NTK-aware scaling whose base grows with the length served beyond ``original_len``."""

    factor: float
    original_len: int

    def __post_init__(self) -> None:
        _positive(self, "factor", "original_len")


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1: long wavelengths divided by ``factor``, short ones kept, a smooth ramp between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_len: int

    def __post_init__(self) -> None:
        _positive(self, "factor", "low_freq_factor", "high_freq_factor", "original_len")
        ordered = self.low_freq_factor < self.high_freq_factor
        _require(ordered, "low_freq_factor", self.low_freq_factor, "below high_freq_factor")


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071). ``attention_factor`` None: ``0.1 ln(factor) + 1``, or from the two
    mscales.
    """

    factor: float
    original_len: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        _positive(self, "factor", "original_len", "beta_fast", "beta_slow")
        ordered = self.beta_fast > self.beta_slow
        _require(ordered, "beta_fast", self.beta_fast, f"above beta_slow = {self.beta_slow}")


@dataclass(frozen=True, kw_only=True)
class LongropeScaling:
    """LongRoPE (arXiv 2402.13753): a divisor a frequency, one list up to ``original_len``, another
    beyond.

    ``factor`` is served length over original length; ``attention_factor`` None: ``sqrt(1 +
    ln(factor) / ln(original_len))``. ``long_attention_factor``: another one beyond
    ``original_len`` (Phi 3.5 MoE).
    """

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_len: int
    factor: float
    attention_factor: float | None = None
    long_attention_factor: float | None = None

    def __post_init__(self) -> None:
        _positive(self, "original_len", "factor")
        same = len(self.short_factor) == len(self.long_factor)
        _require(same, "longrope factors", len(self.long_factor), "two lists of equal length")


RopeScaling = LinearScaling | DynamicScaling | Llama3Scaling | YarnScaling | LongropeScaling


@dataclass(frozen=True, kw_only=True)
class RopeSpec:
    """Rotary positions (arXiv 2104.09864) over the first ``rotary_dim`` of each head.

    ``interleaved``: pairs are neighbours ``(0, 1), (2, 3)`` instead of halves ``(i, i + rotary_dim
    / 2)``.
    """

    theta: float
    rotary_dim: int
    interleaved: bool = False
    scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        _positive(self, "theta", "rotary_dim")
        _require(self.rotary_dim % 2 == 0, "rotary_dim", self.rotary_dim, "even")
        if isinstance(self.scaling, LongropeScaling):
            count, wanted = len(self.scaling.short_factor), self.rotary_dim // 2
            _require(
                count == wanted, "longrope factors", count, f"{wanted} numbers, one a frequency"
            )


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """Softmax attention with grouped queries (MHA: N == K; GQA: N = G * K; MQA: K == 1).

    ``scale`` multiplies ``q . k``; None means ``head_dim ** -0.5``. ``window``: a token sees itself
    and the ``window - 1`` tokens before it; None means all. ``rope`` None: no positions in this
    layer. ``qk_norm`` is applied a head (``"head"``) or over all heads together (``"all"``), before
    rotation. ``softcap``: ``c * tanh(logits / c)``.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float | None = None
    rope: RopeSpec | None = None
    window: int | None = None
    softcap: float | None = None
    qk_norm: NormSpec | None = None
    qk_norm_over: Literal["head", "all"] = "head"
    qkv_bias: bool = False
    out_bias: bool = False

    def __post_init__(self) -> None:
        _positive(self, "num_heads", "num_kv_heads", "head_dim")
        divides = self.num_heads % self.num_kv_heads == 0
        _require(
            divides, "num_kv_heads", self.num_kv_heads, f"a divisor of num_heads = {self.num_heads}"
        )
        for field in ("scale", "window", "softcap"):
            if getattr(self, field) is not None:
                _positive(self, field)
        if self.rope is not None:
            fits = self.rope.rotary_dim <= self.head_dim
            _require(
                fits, "rotary_dim", self.rope.rotary_dim, f"at most head_dim = {self.head_dim}"
            )

    @property
    def softmax_scale(self) -> float:
        """The factor on ``q . k``."""
        return self.head_dim**-0.5 if self.scale is None else self.scale


@dataclass(frozen=True, kw_only=True)
class MlpSpec:
    """``down(act(gate(x)) * up(x))`` when gated (SwiGLU, GeGLU; arXiv 2002.05202), else
    ``down(act(up(x)))``.
    """

    width: int
    activation: Activation = "silu"
    gated: bool = True
    bias: bool = False

    def __post_init__(self) -> None:
        _positive(self, "width")
        known = get_args(Activation)
        _require(
            self.activation in known, "activation", self.activation, "one of " + ", ".join(known)
        )


@dataclass(frozen=True, kw_only=True)
class RouterSpec:
    """Which ``top_k`` of ``num_experts`` experts a token goes to, and how much each of them counts.

    ``scores`` of the router's logits: ``"softmax"`` over all experts (Mixtral, arXiv 2401.04088),
    ``"sigmoid"`` of each (DeepSeek-V3, arXiv 2412.19437), or ``"sparsemixer"`` (GRIN, arXiv
    2409.12136: one expert after the other, each weighed by a softmax over those that come near it,
    as far as ``jitter`` says).

    The experts with the highest scores are chosen, and weigh what they score. ``renormalize``: the
    weights of the chosen ones are divided by their sum; after a softmax this is the same as a
    softmax over the chosen logits alone. ``scale`` multiplies the weights. ``correction``: a
    learned number for each expert is added to its score where experts are chosen, not where they
    are weighed.

    Experts lie in ``num_groups`` groups of equal size, of which only the best ``top_groups`` are
    chosen from (DeepSeek-V2, arXiv 2405.04434). A group is as good as its best expert (``"max"``)
    or as its best two together (``"top2"``).
    """

    num_experts: int
    top_k: int
    scores: RouterScores = "softmax"
    renormalize: bool = True
    scale: float = 1.0
    correction: bool = False
    num_groups: int = 1
    top_groups: int = 1
    group_score: GroupScore = "max"
    jitter: float = 0.0

    def __post_init__(self) -> None:
        _positive(self, "num_experts", "top_k", "scale", "num_groups", "top_groups")
        for field, kinds in (("scores", RouterScores), ("group_score", GroupScore)):
            value, known = getattr(self, field), get_args(kinds)
            _require(value in known, f"router {field}", value, "one of " + ", ".join(known))
        experts, groups = self.num_experts, self.num_groups
        _require(self.top_k <= experts, "top_k", self.top_k, f"at most num_experts = {experts}")
        _require(
            experts % groups == 0, "num_groups", groups, f"a divisor of num_experts = {experts}"
        )
        fits = self.top_groups <= groups
        _require(fits, "top_groups", self.top_groups, f"at most num_groups = {groups}")
        in_groups = self.top_groups * experts // groups
        allowed = f"at most {in_groups}, the experts of top_groups = {self.top_groups} groups"
        _require(self.top_k <= in_groups, "top_k", self.top_k, allowed)
        if groups > 1 and self.group_score == "top2":
            allowed = "a number that leaves each group two experts"
            _require(experts >= 2 * groups, "num_groups", groups, allowed)
        _require(self.jitter >= 0, "jitter", self.jitter, "0 or more")
        if self.scores == "sparsemixer":
            _require(self.top_k <= 2, "top_k of 'sparsemixer'", self.top_k, "1 or 2")
            plain = not (self.renormalize or self.correction or groups > 1)
            allowed = "used without renormalize, correction and groups"
            _require(plain, "router scores", self.scores, allowed)


@dataclass(frozen=True, kw_only=True)
class MoeSpec:
    """A mixture of experts (arXiv 1701.06538) that drops no token: ``num_experts`` MLPs.

    The result is the weighted sum of the experts that the router chose, plus ``shared``, an MLP for
    all tokens. ``shared_gate``: the latter times the sigmoid of one more number from the input.
    """

    router: RouterSpec
    expert: MlpSpec
    shared: MlpSpec | None = None
    shared_gate: bool = False

    def __post_init__(self) -> None:
        has_what_it_gates = self.shared is not None or not self.shared_gate
        _require(has_what_it_gates, "shared_gate", True, "used with a shared expert only")


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """One block: a mixer and an MLP, each with a norm before (``pre_norm``) and/or after
    (``post_norm``).

    ``parallel``: both read the block's input and both are added to it (GPT-NeoX; with
    ``shared_norm`` through one norm). ``residual_scale`` multiplies what each branch adds.
    """

    mixer: AttentionSpec
    mlp: MlpSpec | MoeSpec | None
    pre_norm: NormSpec | None
    post_norm: NormSpec | None = None
    parallel: bool = False
    shared_norm: bool = False
    residual_scale: float = 1.0

    def __post_init__(self) -> None:
        has_norm = self.pre_norm is not None or self.post_norm is not None
        _require(has_norm, "pre_norm and post_norm", None, "given for at least one of the two")
        _require(
            self.parallel or not self.shared_norm,
            "shared_norm",
            True,
            "used in parallel blocks only",
        )
        _positive(self, "residual_scale")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A whole decoder. Token ids run from 0 to ``vocab_size - 1``; ``max_len`` is the longest
    context it was made for.

    ``embed_scale`` multiplies embeddings, ``logit_scale`` the logits, before ``logit_softcap``.
    ``learned_positions`` counts the rows of a learned position table (GPT-2), None where there is
    none.
    """

    model_type: str
    vocab_size: int
    width: int
    max_len: int
    layers: tuple[LayerSpec, ...]
    final_norm: NormSpec
    tied_head: bool
    head_bias: bool = False
    embed_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    learned_positions: int | None = None
    dtype: str = "bfloat16"
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _positive(self, "vocab_size", "width", "max_len", "embed_scale", "logit_scale")
        _require(len(self.layers) > 0, "layers", self.layers, "at least one layer")
        for field in ("logit_softcap", "learned_positions"):
            if getattr(self, field) is not None:
                _positive(self, field)
        dtypes = ("float32", "bfloat16", "float16")
        _require(self.dtype in dtypes, "dtype", self.dtype, "one of " + ", ".join(dtypes))
        if self.learned_positions is not None:
            fits = self.max_len <= self.learned_positions
            _require(
                fits,
                "max_len",
                self.max_len,
                f"at most learned_positions = {self.learned_positions}",
            )

    @property
    def ropes(self) -> tuple[RopeSpec, ...]:
        """The distinct rotary specs of the layers, in the order of their first use."""
        return _distinct(layer.mixer.rope for layer in self.layers if layer.mixer.rope is not None)


def _distinct(specs: Iterable[RopeSpec]) -> tuple[RopeSpec, ...]:
    """The specs without repeats, in the order of their first use."""
    return tuple(dict.fromkeys(specs))
