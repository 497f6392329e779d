"""The static facts an engine is built from: its limits, and the groups of its cache."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from jaxinfer.errors import InvalidParameter
from jaxinfer.sampling_params import RequestLimits
from jaxinfer.shapes import round_up


@dataclass(frozen=True, kw_only=True)
class CacheGroup:
    """Layers whose pages live equally long, with a pool of their own.

    ``num_pages``: pages of the pool; page 0 is never owned, so one fewer can be used. ``window``:
    a token sees itself and the ``window - 1`` tokens before it; None: all of them.
    """

    kind: Literal["full", "latent", "window"]
    window: int | None
    num_pages: int

    def __post_init__(self) -> None:
        if (self.kind == "window") != (self.window is not None):
            raise InvalidParameter(f"a {self.kind!r} group with window = {self.window}")
        if self.num_pages < 2:
            raise InvalidParameter(f"num_pages = {self.num_pages}: at least 2, page 0 is not used")

    def first_column(self, position: int, page_size: int) -> int:
        """The first page that a token at ``position`` still sees; earlier ones may go."""
        return 0 if self.window is None else max(0, position - self.window + 1) // page_size

    def pages_for(self, num_tokens: int, page_size: int) -> int:
        """The fewest pages with which one sequence can grow to ``num_tokens`` cached tokens."""
        pages = round_up(num_tokens, page_size) // page_size
        if self.window is None:
            return pages
        return min(pages, (self.window + page_size - 2) // page_size + 1)

    def capacity(self, page_size: int) -> int | None:
        """The most tokens of one sequence that its pool can hold; None: as many as you like."""
        pages = self.num_pages - 1
        if self.window is not None and pages >= self.pages_for(self.window + page_size, page_size):
            return None
        return pages * page_size


@dataclass(frozen=True, kw_only=True)
class EngineLimits:
    """What an engine holds at most; everything is bounded by these before it is allocated.

    Attributes:
        max_model_len: prompt and output of one sequence, in tokens.
        vocab_size: width of the logits; token ids are below it.
        max_num_seqs: slots (S), so sequences in one step.
        max_num_batched_tokens: tokens in one step; at least ``max_num_seqs``.
        page_size: tokens a page.
        decode_steps: how many decode steps one call may take, ascending, beginning with 1.
        enable_prefix_caching: full pages are kept for prompts that begin with the same tokens.
        max_waiting_requests: longest queue, in requests; None is endless.
        max_waiting_tokens: longest queue, in prompt tokens; None is endless.
        request: what one request may ask for.
    """

    max_model_len: int
    vocab_size: int
    max_num_seqs: int = 8
    max_num_batched_tokens: int = 512
    page_size: int = 16
    decode_steps: tuple[int, ...] = (1,)
    enable_prefix_caching: bool = True
    max_waiting_requests: int | None = None
    max_waiting_tokens: int | None = None
    request: RequestLimits = field(default_factory=RequestLimits)

    def __post_init__(self) -> None:
        least = {
            "max_model_len": 2,
            "vocab_size": 1,
            "max_num_seqs": 1,
            "page_size": 1,
            "max_num_batched_tokens": self.max_num_seqs,
        }
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise InvalidParameter(
                    f"{name} = {getattr(self, name)} is not allowed: it must be at least {minimum}"
                )
        steps = self.decode_steps
        if steps[:1] != (1,) or list(steps) != sorted(set(steps)):
            raise InvalidParameter(f"decode_steps = {steps}: ascending, beginning with 1")


def pool_capacity(groups: Sequence[CacheGroup], page_size: int) -> int | None:
    """The most cached tokens of one sequence that every group has pages for; None: no bound."""
    bounds = [group.capacity(page_size) for group in groups]
    return min((bound for bound in bounds if bound is not None), default=None)
