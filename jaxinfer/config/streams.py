"""Residual streams beyond a plain sum: several of them, and a low-rank branch beside a mixer."""

from dataclasses import dataclass

from jaxinfer.config.checks import positive, require
from jaxinfer.config.norm import NormSpec


@dataclass(frozen=True, kw_only=True)
class AltUpSpec:
    """Alternating updates (AltUp, arXiv 2301.13310): ``num_streams`` residual streams, of which a
    block computes only the ``active`` one and predicts and corrects all.

    Each stream is predicted as itself plus a mixture of all, and corrected by a share of what the
    block changed in the active one; the shares come from the active stream, through ``norm``.
    ``scaled_output``: what the block hands on to its own input (``LayerInputSpec``) is multiplied
    by a learned vector.
    """

    num_streams: int
    norm: NormSpec
    active: int = 0
    scaled_output: bool = True

    def __post_init__(self) -> None:
        require(self.num_streams >= 2, "num_streams", self.num_streams, "2 or more")
        fits = 0 <= self.active < self.num_streams
        require(fits, "active", self.active, f"from 0 to {self.num_streams - 1}")


@dataclass(frozen=True, kw_only=True)
class LaurelSpec:
    """Learned augmented residual layer, low-rank (LAuReL, arXiv 2411.07501).

    With ``h`` the mixer's input, ``(x + mixer(h) + h + norm(up(down(h)))) / sqrt(2)`` goes on;
    ``rank`` is the width between ``down`` and ``up``.
    """

    rank: int
    norm: NormSpec

    def __post_init__(self) -> None:
        positive(self, "rank")
