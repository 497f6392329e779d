"""Rotary positions, and how they are stretched beyond the length a model was trained at."""

from dataclasses import dataclass

from jaxinfer.config.checks import positive, require


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Position interpolation (arXiv 2306.15595): every frequency divided by ``factor``."""

    factor: float

    def __post_init__(self) -> None:
        positive(self, "factor")


@dataclass(frozen=True, kw_only=True)
class DynamicScaling:
    """NTK-aware scaling whose base grows with the length served beyond ``original_len``."""

    factor: float
    original_len: int

    def __post_init__(self) -> None:
        positive(self, "factor", "original_len")


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1: long wavelengths divided by ``factor``, short ones kept, a smooth ramp between.

    Where both factors are the same (Llama 4) there is no between.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_len: int

    def __post_init__(self) -> None:
        positive(self, "factor", "low_freq_factor", "high_freq_factor", "original_len")
        ordered = self.low_freq_factor <= self.high_freq_factor
        require(ordered, "low_freq_factor", self.low_freq_factor, "at most high_freq_factor")


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
        positive(self, "factor", "original_len", "beta_fast", "beta_slow")
        # Equal, in Kimi K2: hardly a pair stands between those that turn fast and the slow ones.
        ordered = self.beta_fast >= self.beta_slow
        require(ordered, "beta_fast", self.beta_fast, f"beta_slow = {self.beta_slow} at least")


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
        positive(self, "original_len", "factor")
        same = len(self.short_factor) == len(self.long_factor)
        require(same, "longrope factors", len(self.long_factor), "two lists of equal length")


@dataclass(frozen=True, kw_only=True)
class ProportionalScaling:
    """Only the first ``share`` of the frequencies turn, divided by ``factor``; the others are 0
    (Gemma 4). Unlike a smaller ``rotary_dim`` this leaves pairs and frequencies as they were.
    """

    share: float
    factor: float = 1.0

    def __post_init__(self) -> None:
        positive(self, "share", "factor")
        require(self.share <= 1, "share of a proportional rope", self.share, "at most 1")


RopeScaling = (
    LinearScaling
    | DynamicScaling
    | Llama3Scaling
    | YarnScaling
    | LongropeScaling
    | ProportionalScaling
)


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
        positive(self, "theta", "rotary_dim")
        require(self.rotary_dim % 2 == 0, "rotary_dim", self.rotary_dim, "even")
        if isinstance(self.scaling, LongropeScaling):
            count, wanted = len(self.scaling.short_factor), self.rotary_dim // 2
            require(
                count == wanted, "longrope factors", count, f"{wanted} numbers, one a frequency"
            )
