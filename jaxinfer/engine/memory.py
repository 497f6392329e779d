"""How many pages there is room for: known from the compiled programs, not guessed."""

import os
from dataclasses import dataclass
from pathlib import Path

import jax

from jaxinfer.cache import layer_groups, page_bytes
from jaxinfer.config import ModelConfig
from jaxinfer.engine.limits import CacheGroup, EngineLimits
from jaxinfer.errors import CapacityError

#: The CPU shares its memory with everything else: its pools stay modest unless asked otherwise.
CPU_POOL_BYTES = 2 * 2**30
_MOST_PAGES = 2**20


@dataclass(frozen=True, kw_only=True)
class MemoryBudget:
    """Bytes on each device, and what the pages hold."""

    weights: int
    slots: int
    temporaries: int
    pages: int
    limit: int
    num_pages: tuple[int, ...]
    page_size: int

    @property
    def total(self) -> int:
        return self.weights + self.slots + self.temporaries + self.pages

    def __str__(self) -> str:
        parts = ", ".join(
            f"{name} {getattr(self, name) / 2**20:,.0f} MiB"
            for name in ("weights", "slots", "temporaries", "pages")
        )
        tokens = (self.num_pages[0] - 1) * self.page_size
        return (
            f"memory: {parts}: {self.total / 2**20:,.0f} of {self.limit / 2**20:,.0f} MiB;"
            f" {tokens:,} tokens in {self.num_pages[0] - 1:,} pages of {self.page_size}"
        )


def memory_limit(device: jax.Device) -> int:
    """Bytes this process may use on ``device``; on the CPU, what the container allows."""
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    bounds = [_read_int(path) for path in _CGROUP_LIMITS]
    return min([physical, *(bound for bound in bounds if bound is not None)])


_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def _read_int(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def cache_groups(
    config: ModelConfig, limits: EngineLimits, num_pages: int
) -> tuple[CacheGroup, ...]:
    """The pools for ``num_pages`` pages of the first group.

    A window group beside a full one never needs more than every slot's window and one step's
    tokens; beyond that its pages would lie idle.
    """
    first, *others = layer_groups(config)
    groups = [CacheGroup(kind=first.kind, window=first.window, num_pages=num_pages)]
    for group in others:
        assert group.window is not None
        a_window = -(-group.window // limits.page_size) + 2
        a_step = -(-limits.max_num_batched_tokens // limits.page_size)
        most = 1 + 2 * limits.max_num_seqs * a_window + a_step
        pages = min(num_pages, most)
        groups.append(CacheGroup(kind=group.kind, window=group.window, num_pages=pages))
    return tuple(groups)


def pool_bytes(
    config: ModelConfig, limits: EngineLimits, num_pages: int, dtype: jax.typing.DTypeLike
) -> int:
    """Bytes of all pools, with ``num_pages`` pages in the first group."""
    sizes = page_bytes(config, limits.page_size, dtype)
    groups = cache_groups(config, limits, num_pages)
    return sum(size * group.num_pages for size, group in zip(sizes, groups, strict=True))


def fitting_pages(
    config: ModelConfig, limits: EngineLimits, dtype: jax.typing.DTypeLike, room: int
) -> int:
    """The most pages that fit into ``room`` bytes and could ever be used, on a coarse grid.

    The grid (three leading bits) keeps the shapes, and so the compilation cache, the same from one
    start to the next although the free memory never is.

    Raises:
        CapacityError: not even one sequence of one page fits.
    """
    per_sequence = -(-limits.max_model_len // limits.page_size)
    useful = 1 + limits.max_num_seqs * per_sequence
    candidates = [count for count in _grid(_MOST_PAGES) if count <= useful] + [useful]
    fitting = [count for count in candidates if pool_bytes(config, limits, count, dtype) <= room]
    if not fitting:
        smallest = pool_bytes(config, limits, 2, dtype)
        raise CapacityError(
            f"{max(room, 0):,} bytes are left for pages and the smallest pool takes {smallest:,}: "
            "use a smaller model, dtype or page_size, fewer max_num_seqs, or a larger"
            " memory_utilization"
        )
    return max(fitting)


def _grid(most: int) -> list[int]:
    """2, 3, 4 ... 8, 10, 12, 14, 16, 20 ...: numbers of three leading bits."""
    return sorted(
        {lead << shift for shift in range(most.bit_length()) for lead in range(4, 8)} | {2, 3}
    )
