"""Norms."""

from dataclasses import dataclass
from typing import Literal, get_args

from jaxinfer.config.checks import positive, require

NormKind = Literal["rms", "layer"]


@dataclass(frozen=True, kw_only=True)
class NormSpec:
    """RMSNorm (arXiv 1910.07467) or LayerNorm (arXiv 1607.06450), computed in float32.

    ``weight`` False: nothing is learned (Llama 4's norm of q and k, Gemma 4's of v).
    ``unit_offset``: the stored weight ``w`` is used as ``1 + w`` (the Gemma kind).
    """

    kind: NormKind = "rms"
    eps: float = 1e-6
    weight: bool = True
    unit_offset: bool = False
    bias: bool = False

    def __post_init__(self) -> None:
        require(self.kind in get_args(NormKind), "norm kind", self.kind, "'rms' or 'layer'")
        positive(self, "eps")
        require(not (self.kind == "rms" and self.bias), "norm bias", self.bias, "False for 'rms'")
        plain = self.weight or not (self.unit_offset or self.bias)
        require(plain, "norm weight", self.weight, "True with unit_offset or a bias")
