"""What each layer learns of a token beside the residual stream."""

from dataclasses import dataclass

from jaxinfer.config.checks import positive
from jaxinfer.config.mlp import Activation
from jaxinfer.config.norm import NormSpec


@dataclass(frozen=True, kw_only=True)
class LayerInputSpec:
    """Per-layer inputs (Gemma 3n, Gemma 4): a vector of ``width`` for each token and layer.

    It is ``(table[token] * sqrt(width) + norm(project(embedding) / sqrt(D))) / sqrt(2)``, where
    ``table`` has ``vocab_size`` rows of a vector for each layer; a token beyond them reads row 0.
    After its MLP a layer adds ``post_norm(widen(act(narrow(x)) * vector))`` to the residual stream;
    with AltUp, ``x`` is the active stream and the sum goes to all but the first.
    """

    width: int
    vocab_size: int
    activation: Activation
    norm: NormSpec
    post_norm: NormSpec

    def __post_init__(self) -> None:
        positive(self, "width", "vocab_size")
