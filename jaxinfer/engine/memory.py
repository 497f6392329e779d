"""How many pages there is room for: known from the compiled programs, not guessed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import jax
from jax.sharding import Mesh, NamedSharding

from jaxinfer.cache import Pages, group_of_layer, init_cache, layer_groups, page_shardings
from jaxinfer.config import ModelConfig
from jaxinfer.engine.cgroup import cgroup_memory_limit
from jaxinfer.engine.limits import CacheGroup, EngineLimits
from jaxinfer.errors import CapacityError, InvalidParameter
from sharding import device_bytes

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
    layout: str | None = None
    """How weights lie in memory, where it is worth saying."""

    @property
    def total(self) -> int:
        return self.weights + self.slots + self.temporaries + self.pages

    @property
    def by_use(self) -> dict[str, int]:
        """Bytes by what they are for."""
        names = ("weights", "slots", "temporaries", "pages")
        return {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        parts = ", ".join(
            f"{name} {nbytes / 2**20:,.0f} MiB" for name, nbytes in self.by_use.items()
        )
        tokens = (self.num_pages[0] - 1) * self.page_size
        return (
            f"memory: {parts}: {self.total / 2**20:,.0f} of {self.limit / 2**20:,.0f} MiB;"
            f" {tokens:,} tokens in {self.num_pages[0] - 1:,} pages of {self.page_size}"
            + (f"; {self.layout}" if self.layout else "")
        )


def memory_limit(device: jax.Device) -> int:
    """Bytes this process may use on ``device``; on the CPU, what the container allows."""
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    container = cgroup_memory_limit()
    return physical if container is None else min(physical, container)


def usable_memory(mesh: Mesh, memory_utilization: float) -> int:
    """Bytes that everything together may take of each device of the mesh.

    Raises:
        InvalidParameter: ``memory_utilization`` is no share.
    """
    if not 0 < memory_utilization <= 1:
        raise InvalidParameter(f"memory_utilization = {memory_utilization} must be in (0, 1]")
    limit = min(map(memory_limit, mesh.local_devices))
    if mesh.local_devices[0].platform == "cpu":
        limit //= len(mesh.local_devices)  # they all live in the memory of one host
    return int(limit * memory_utilization)


@contextmanager
def exhaustion_is_capacity_error() -> Iterator[None]:
    """Within it, XLA running out of memory is a ``CapacityError``; its other errors stay."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise CapacityError(
            f"the device ran out of memory: {error}: free what others hold there, use a smaller"
            " model or dtype, or lower memory_utilization, num_pages, max_num_seqs or"
            " max_num_batched_tokens"
        ) from error


def cache_groups(
    config: ModelConfig, limits: EngineLimits, num_pages: int
) -> tuple[CacheGroup, ...]:
    """The pools for ``num_pages`` pages of a group that keeps all tokens.

    A window group has fewer where more would lie idle: no step needs more than the windows of all
    slots and its own tokens, and as many windows again may be kept for prompts that come later.
    """
    groups = []
    for group in layer_groups(config):
        most = num_pages if group.window is None else _window_pages(group.window, limits)
        groups.append(
            CacheGroup(kind=group.kind, window=group.window, num_pages=min(num_pages, most))
        )
    return tuple(groups)


def useful_pages(limits: EngineLimits) -> int:
    """The most pages of a group that keeps all tokens which could ever be used."""
    return 1 + limits.max_num_seqs * _pages(limits.max_model_len, limits)


def _window_pages(window: int, limits: EngineLimits) -> int:
    a_window, a_step = _pages(window, limits) + 2, _pages(limits.max_num_batched_tokens, limits)
    return 1 + 2 * limits.max_num_seqs * a_window + a_step


def _pages(num_tokens: int, limits: EngineLimits) -> int:
    return -(-num_tokens // limits.page_size)


def device_page_bytes(
    config: ModelConfig, page_size: int, dtype: jax.typing.DTypeLike, mesh: Mesh
) -> tuple[int, ...]:
    """Bytes that each device holds of one page of each group, over all layers of the group."""
    groups = group_of_layer(config)
    num_groups = len(layer_groups(config))
    with jax.set_mesh(mesh):
        ones = jax.eval_shape(lambda: init_cache(config, (1,) * num_groups, page_size, dtype))
    sizes = [0] * num_groups
    for group, page, sharding in zip(groups, ones, page_shardings(config, mesh), strict=True):
        if page is not None:
            sizes[group] += device_bytes(_placed(page, sharding))
    return tuple(sizes)


def _placed(page: Pages, sharding: NamedSharding) -> Pages:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), page
    )


def pool_bytes(
    config: ModelConfig, limits: EngineLimits, num_pages: int, page_bytes: tuple[int, ...]
) -> int:
    """Bytes of all pools, with ``num_pages`` pages in each group that keeps all tokens.

    ``page_bytes``: of one page of each group, such as ``device_page_bytes``.
    """
    groups = cache_groups(config, limits, num_pages)
    return sum(size * group.num_pages for size, group in zip(page_bytes, groups, strict=True))


def fitting_pages(
    config: ModelConfig, limits: EngineLimits, page_bytes: tuple[int, ...], room: int
) -> int:
    """The most pages that fit into ``room`` bytes and could ever be used, on a coarse grid.

    The grid (three leading bits) keeps the shapes, and so the compilation cache, the same from one
    start to the next although the free memory never is.

    Raises:
        CapacityError: not even one sequence of one page fits.
    """
    useful = useful_pages(limits)
    candidates = [count for count in _grid(_MOST_PAGES) if count <= useful] + [useful]
    fitting = [
        count for count in candidates if pool_bytes(config, limits, count, page_bytes) <= room
    ]
    if not fitting:
        smallest = pool_bytes(config, limits, 2, page_bytes)
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
