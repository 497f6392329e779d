"""Multi-head latent attention: a mixer that keeps one latent a token, for all of its heads."""

from dataclasses import dataclass
from typing import Literal

from jaxinfer.config.checks import positive, require
from jaxinfer.config.norm import NormSpec
from jaxinfer.config.rope import RopeSpec


@dataclass(frozen=True, kw_only=True)
class LatentSpec:
    """Multi-head latent attention (MLA; DeepSeek-V2, arXiv 2405.04434, section 2.1).

    A token leaves in the cache a latent of ``kv_rank`` numbers, after ``latent_norm``, and one
    rotated key of ``rope_dim`` for all heads. Of the latent each head makes a key of ``nope_dim``
    and a value of ``value_dim``; its queries have ``nope_dim`` numbers for the one and ``rope_dim``
    for the other. ``q_rank``: queries come of a latent of their own, after ``query_norm``; None: of
    the input. ``scale`` multiplies ``q . k``; None means ``(nope_dim + rope_dim) ** -0.5``.
    ``down_bias``: on the products that make the two latents.
    """

    num_heads: int
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    rope: RopeSpec
    latent_norm: NormSpec
    q_rank: int | None = None
    query_norm: NormSpec | None = None
    scale: float | None = None
    down_bias: bool = False
    out_bias: bool = False

    def __post_init__(self) -> None:
        positive(self, "num_heads", "kv_rank", "nope_dim", "rope_dim", "value_dim")
        for field in ("q_rank", "scale"):
            if getattr(self, field) is not None:
                positive(self, field)
        turned = self.rope.rotary_dim
        require(turned == self.rope_dim, "rotary_dim", turned, f"rope_dim = {self.rope_dim}")
        both = (self.q_rank is None) == (self.query_norm is None)
        require(both, "query_norm", self.query_norm, "given with q_rank, and not without")

    @property
    def softmax_scale(self) -> float:
        """The factor on ``q . k``."""
        return self.query_dim**-0.5 if self.scale is None else self.scale

    @property
    def query_dim(self) -> int:
        """Numbers of one head's query."""
        return self.nope_dim + self.rope_dim

    @property
    def query_temperature(self) -> None:
        """Queries do not grow with their position."""

    @property
    def window(self) -> None:
        """A token sees all tokens before it."""

    @property
    def reach(self) -> None:
        """Likewise."""

    @property
    def cache_kind(self) -> Literal["latent"]:
        """What a token leaves in the cache."""
        return "latent"

    @property
    def split_heads(self) -> int:
        """How many heads there are to split among devices."""
        return self.num_heads
