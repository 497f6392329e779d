"""What keys and values cost: bytes a token and a page, how far and how wide a memory reaches."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxinfer.cache import layer_groups, page_bytes
from jaxinfer.config import ModelConfig
from jaxinfer.engine.limits import CacheGroup, EngineLimits
from jaxinfer.engine.memory import pool_bytes, useful_pages


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


def batch_bytes(
    config: ModelConfig, groups: Sequence[GroupFacts], page_size: int, batch: int, num_tokens: int
) -> int:
    """Bytes of all that an engine allocates to serve ``batch`` sequences of ``num_tokens`` tokens.

    That is more than they hold: the first page of each pool, and what windows keep for the tokens
    of a step and for prompts that come later. See ``engine.memory.cache_groups``.
    """
    limits = EngineLimits(
        max_model_len=max(num_tokens, 2),
        vocab_size=config.vocab_size,
        max_num_seqs=batch,
        max_num_batched_tokens=max(EngineLimits.max_num_batched_tokens, batch),
        page_size=page_size,
    )
    pages = tuple(group.page_bytes for group in groups)
    return pool_bytes(config, limits, useful_pages(limits), pages)


def longest_context(
    config: ModelConfig, groups: Sequence[GroupFacts], page_size: int, room: int
) -> int:
    """The most tokens of one sequence that an engine of one slot can serve in ``room`` bytes of
    pages, at most those that the model was made for."""

    def cost(num_tokens: int) -> int:
        return batch_bytes(config, groups, page_size, 1, num_tokens)

    return bisect_right(range(1, config.max_len + 1), room, key=cost)


def largest_batch(
    config: ModelConfig, groups: Sequence[GroupFacts], page_size: int, room: int, num_tokens: int
) -> int:
    """How many sequences of ``num_tokens`` tokens an engine of as many slots can serve at once in
    ``room`` bytes of pages."""

    def cost(batch: int) -> int:
        return batch_bytes(config, groups, page_size, batch, num_tokens)

    # Each takes a page of every group at least.
    most = max(room, 0) // sum(group.page_bytes for group in groups)
    return bisect_right(range(1, most + 1), room, key=cost)


def _pool(group: GroupFacts) -> CacheGroup:
    return CacheGroup(kind=group.kind, window=group.window, num_pages=2)
