"""Mixers: how a layer looks at other tokens."""

from dataclasses import dataclass
from typing import Literal, get_args

from jaxinfer.config.checks import positive, require
from jaxinfer.config.norm import NormSpec
from jaxinfer.config.rope import RopeSpec

QkNormOver = Literal["head", "each_head", "all"]


@dataclass(frozen=True, kw_only=True)
class QueryTemperature:
    """Queries that grow with their position ``p``, so that attention over a long past stays sharp.

    The factor is ``1 + beta * log(1 + floor((p + offset) / interval))``: Llama 4's temperature
    tuning with an offset of 1, Ministral 3's with none. It follows scalable softmax (arXiv
    2501.19399).
    """

    beta: float
    interval: int
    offset: int = 0

    def __post_init__(self) -> None:
        positive(self, "beta", "interval")
        require(self.offset in (0, 1), "offset", self.offset, "0 or 1")


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """Softmax attention with grouped queries (MHA: N == K; GQA: N = G * K; MQA: K == 1).

    ``scale`` multiplies ``q . k``; None means ``head_dim ** -0.5``. ``window``: a token sees itself
    and the ``window - 1`` tokens before it; None means all. ``chunk``, in its place: a token sees
    only those of its own chunk of so many positions (Llama 4). ``rope`` None: no positions in this
    layer. ``softcap``: ``c * tanh(logits / c)``. ``sinks``: a learned logit a head, of no token: it
    takes its part of the softmax and adds nothing (gpt-oss, arXiv 2508.10925).

    ``qk_norm`` is applied a head, with one weight for all of them (``"head"``) or each with its own
    (``"each_head"``), or over all heads together (``"all"``); before rotation, or after it with
    ``qk_norm_after_rope``. ``query_temperature`` multiplies the queries last of all. ``qkv_clip``
    keeps each number of q, k and v between itself and its negative: before rotation, after a norm
    that is there.

    ``v_norm`` is applied to each head of the values, last of all. ``v_from_k``: there is no
    projection of values, they are the projected keys before norm and rotation.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float | None = None
    rope: RopeSpec | None = None
    window: int | None = None
    chunk: int | None = None
    softcap: float | None = None
    qk_norm: NormSpec | None = None
    qk_norm_over: QkNormOver = "head"
    qk_norm_after_rope: bool = False
    query_temperature: QueryTemperature | None = None
    qkv_clip: float | None = None
    v_norm: NormSpec | None = None
    v_from_k: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    sinks: bool = False

    def __post_init__(self) -> None:
        positive(self, "num_heads", "num_kv_heads", "head_dim")
        divides = self.num_heads % self.num_kv_heads == 0
        require(
            divides, "num_kv_heads", self.num_kv_heads, f"a divisor of num_heads = {self.num_heads}"
        )
        for field in ("scale", "window", "chunk", "softcap", "qkv_clip"):
            if getattr(self, field) is not None:
                positive(self, field)
        both = self.window is not None and self.chunk is not None
        require(not both, "chunk", self.chunk, "None beside a window")
        known = get_args(QkNormOver)
        require(self.qk_norm_over in known, "qk_norm_over", self.qk_norm_over, " or ".join(known))
        if self.qk_norm_after_rope:
            allowed = "used with a norm of single heads"
            has_heads = self.qk_norm is not None and self.qk_norm_over != "all"
            require(has_heads, "qk_norm_after_rope", True, allowed)
        if self.rope is not None:
            fits = self.rope.rotary_dim <= self.head_dim
            require(fits, "rotary_dim", self.rope.rotary_dim, f"at most head_dim = {self.head_dim}")

    @property
    def softmax_scale(self) -> float:
        """The factor on ``q . k``."""
        return self.head_dim**-0.5 if self.scale is None else self.scale

    @property
    def reach(self) -> int | None:
        """How many tokens a token can see at most, itself included; None: all before it."""
        return self.chunk if self.window is None else self.window

    @property
    def cache_kind(self) -> Literal["full", "window"]:
        """Whether the keys and values of all tokens must stay, or those within reach."""
        return "full" if self.reach is None else "window"

    @property
    def split_heads(self) -> int:
        """How many heads, with their pages, there are to split among devices."""
        return self.num_kv_heads
