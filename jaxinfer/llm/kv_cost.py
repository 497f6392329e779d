"""What keys and values cost: bytes a token and a page, how far and how wide a memory reaches."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxinfer.cache import layer_groups, page_bytes
from jaxinfer.config import ModelConfig
from jaxinfer.engine.limits import CacheGroup


@dataclass(frozen=True, kw_only=True)
class GroupFacts:
    """Layers whose pages live equally long. Bytes are over all layers of the group.

    ``num_owners`` of the ``num_layers`` have pages; the others read those. A group with a
    ``window`` costs no more than the pages that one window touches, however long the context.
    """

    kind: Literal["full", "latent", "window"]
    window: int | None
    num_layers: int
    num_owners: int
    kv_bytes_per_token: int
    page_bytes: int


def group_facts(config: ModelConfig, page_size: int, dtype: str) -> tuple[GroupFacts, ...]:
    """The groups of a model, with the bytes of the arrays that ``init_cache`` makes."""
    sizes = page_bytes(config, page_size, dtype)
    return tuple(
        GroupFacts(
            kind=group.kind,
            window=group.window,
            num_layers=len(group.layers),
            num_owners=sum(config.layers[i].kv_from is None for i in group.layers),
            kv_bytes_per_token=nbytes // page_size,
            page_bytes=nbytes,
        )
        for group, nbytes in zip(layer_groups(config), sizes, strict=True)
    )


def sequence_bytes(groups: Sequence[GroupFacts], page_size: int, num_tokens: int) -> int:
    """Bytes of the pages that one sequence of ``num_tokens`` holds."""
    return sum(_pool(group).pages_for(num_tokens, page_size) * group.page_bytes for group in groups)


def unused_bytes(groups: Sequence[GroupFacts]) -> int:
    """Bytes of the first page of each pool, which is never used."""
    return sum(group.page_bytes for group in groups)


def longest_context(groups: Sequence[GroupFacts], page_size: int, room: int, max_len: int) -> int:
    """The most tokens of one sequence whose pages fit into ``room`` bytes, at most ``max_len``."""
    left = room - unused_bytes(groups)
    lengths = range(max_len + 1)
    fitting = bisect_right(lengths, left, key=lambda n: sequence_bytes(groups, page_size, n))
    return max(0, fitting - 1)


def largest_batch(groups: Sequence[GroupFacts], page_size: int, room: int, num_tokens: int) -> int:
    """How many sequences of ``num_tokens`` tokens have room for their pages at once.

    Of windows beside full attention the engine's pools have more (``engine.memory.cache_groups``).
    """
    left = room - unused_bytes(groups)
    return max(0, left // sequence_bytes(groups, page_size, num_tokens))


def _pool(group: GroupFacts) -> CacheGroup:
    return CacheGroup(kind=group.kind, window=group.window, num_pages=2)
