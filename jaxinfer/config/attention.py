"""Mixers: how a layer looks at other tokens."""

from dataclasses import dataclass
from typing import Literal

from jaxinfer.config.checks import positive, require
from jaxinfer.config.norm import NormSpec
from jaxinfer.config.rope import RopeSpec


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
        positive(self, "num_heads", "num_kv_heads", "head_dim")
        divides = self.num_heads % self.num_kv_heads == 0
        require(
            divides, "num_kv_heads", self.num_kv_heads, f"a divisor of num_heads = {self.num_heads}"
        )
        for field in ("scale", "window", "softcap"):
            if getattr(self, field) is not None:
                positive(self, field)
        if self.rope is not None:
            fits = self.rope.rotary_dim <= self.head_dim
            require(fits, "rotary_dim", self.rope.rotary_dim, f"at most head_dim = {self.head_dim}")

    @property
    def softmax_scale(self) -> float:
        """The factor on ``q . k``."""
        return self.head_dim**-0.5 if self.scale is None else self.scale
