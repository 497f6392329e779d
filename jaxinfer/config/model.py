"""A block, and the stack of them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from jaxinfer.config.attention import AttentionSpec, QueryTemperature
from jaxinfer.config.checks import positive, require
from jaxinfer.config.kv_sharing import check_kv_from
from jaxinfer.config.latent import LatentSpec
from jaxinfer.config.layer_input import LayerInputSpec
from jaxinfer.config.mlp import MlpSpec, MoeSpec
from jaxinfer.config.norm import NormSpec
from jaxinfer.config.rope import RopeSpec
from jaxinfer.config.streams import AltUpSpec, LaurelSpec

T = TypeVar("T")

#: All of them have ``rope``, ``window``, ``reach``, ``query_temperature``, ``cache_kind`` and
#: ``split_heads``.
MixerSpec = AttentionSpec | LatentSpec


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """One block: a mixer and an MLP, each with a norm before (``pre_norm``) and/or after
    (``post_norm``).

    ``kv_from``: the layer whose pages the mixer reads (CLA, arXiv 2405.12981); such a layer has
    neither pages nor projections of keys and values. None: it has its own.

    ``parallel``: both read the block's input and both are added to it (GPT-NeoX; with
    ``shared_norm`` through one norm). ``residual_scale`` multiplies what each branch adds;
    ``learned_scale``: a learned number multiplies the block's result (Gemma 4). ``laurel``: a
    low-rank branch beside the mixer.
    """

    mixer: MixerSpec
    mlp: MlpSpec | MoeSpec | None
    pre_norm: NormSpec | None
    post_norm: NormSpec | None = None
    parallel: bool = False
    shared_norm: bool = False
    residual_scale: float = 1.0
    learned_scale: bool = False
    laurel: LaurelSpec | None = None
    kv_from: int | None = None

    def __post_init__(self) -> None:
        has_norm = self.pre_norm is not None or self.post_norm is not None
        require(has_norm, "pre_norm and post_norm", None, "given for at least one of the two")
        require(
            self.parallel or not self.shared_norm,
            "shared_norm",
            True,
            "used in parallel blocks only",
        )
        positive(self, "residual_scale")
        in_turn = self.laurel is None or not self.parallel
        require(in_turn, "laurel", self.laurel, "used in blocks that are not parallel")

    @property
    def has_mlp_norm(self) -> bool:
        """Whether one norm, of the MLP's own, stands before it."""
        parts = isinstance(self.mlp, MoeSpec) and self.mlp.part_norm is not None
        return self.mlp is not None and not self.shared_norm and not parts

    @property
    def attention(self) -> AttentionSpec:
        """The mixer of a layer that is known to attend to keys and values."""
        assert isinstance(self.mixer, AttentionSpec), "a layer with keys and values"
        return self.mixer

    @property
    def latent(self) -> LatentSpec:
        """The mixer of a layer that is known to attend to latents."""
        assert isinstance(self.mixer, LatentSpec), "a layer with latents"
        return self.mixer


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A whole decoder. Token ids run from 0 to ``vocab_size - 1``; ``max_len`` is the longest
    context it was made for.

    ``embed_scale`` multiplies embeddings, ``logit_scale`` the logits, before ``logit_softcap``.
    ``learned_positions`` counts the rows of a learned position table (GPT-2), None where there is
    none. ``altup``: several residual streams; ``layer_input``: a vector of each token for each
    layer.
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
    altup: AltUpSpec | None = None
    layer_input: LayerInputSpec | None = None
    dtype: str = "bfloat16"
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        positive(self, "vocab_size", "width", "max_len", "embed_scale", "logit_scale")
        require(len(self.layers) > 0, "layers", self.layers, "at least one layer")
        check_kv_from(self.layers)
        for field in ("logit_softcap", "learned_positions"):
            if getattr(self, field) is not None:
                positive(self, field)
        dtypes = ("float32", "bfloat16", "float16")
        require(self.dtype in dtypes, "dtype", self.dtype, "one of " + ", ".join(dtypes))
        if self.learned_positions is not None:
            fits = self.max_len <= self.learned_positions
            require(
                fits,
                "max_len",
                self.max_len,
                f"at most learned_positions = {self.learned_positions}",
            )

    def kv_owner(self, layer: int) -> int:
        """The layer whose pages a layer reads: itself, or the one that it names."""
        owner = self.layers[layer].kv_from
        return layer if owner is None else owner

    @property
    def ropes(self) -> tuple[RopeSpec, ...]:
        """The distinct rotary specs of the layers, in the order of their first use."""
        return _distinct(layer.mixer.rope for layer in self.layers if layer.mixer.rope is not None)

    @property
    def query_temperatures(self) -> tuple[QueryTemperature, ...]:
        """Likewise their distinct query temperatures."""
        found = (layer.mixer.query_temperature for layer in self.layers)
        return _distinct(spec for spec in found if spec is not None)


def _distinct(specs: Iterable[T]) -> tuple[T, ...]:
    """The specs without repeats, in the order of their first use."""
    return tuple(dict.fromkeys(specs))
