"""Writing new positions into pages, in a TPU kernel."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.paging.tpu_registers import rows_of
from pallas_kernels.paging.tpu_words import put_where, words_where


def write_tiles(refs: Any, dtype: np.dtype, in_flight: int) -> None:
    """Brings the tiles that hold new positions, puts these in and writes them back.

    ``refs.pages [P, *heads, page size, lanes]`` and ``refs.new [*heads, places, lanes]`` hold
    ``dtype``; ``num_tiles_1`` and ``tile_*_W`` are ``tpu_rows.NewTiles.writes``. ``in_flight``
    tiles are on their way, half of them being read and half being written.
    """
    num_tiles, ahead, tile = refs.num_tiles_1[0], in_flight // 2, rows_of(dtype)
    *heads, _, width = refs.new.shape

    def scoped(old: Any, new: Any, reading: Any, writing: Any) -> None:
        def place_of(i: jax.Array) -> Any:
            row = pl.multiple_of(refs.tile_row_W[i], tile)
            return refs.pages.at[refs.tile_page_W[i], ..., pl.ds(row, tile), :]

        def turn_of(i: jax.Array) -> jax.Array:
            return jax.lax.rem(i, jnp.int32(in_flight))

        def reads(i: jax.Array) -> tuple[Any, Any]:
            nth = turn_of(i)
            start = pl.multiple_of(refs.tile_from_W[i], tile)
            new_tile = refs.new.at[..., pl.ds(start, tile), :]
            return (
                pltpu.make_async_copy(place_of(i), old.at[nth], reading.at[nth]),
                pltpu.make_async_copy(new_tile, new.at[nth], reading.at[nth]),
            )

        def write(i: jax.Array) -> Any:
            nth = turn_of(i)
            return pltpu.make_async_copy(old.at[nth], place_of(i), writing.at[nth])

        def start_reads(i: jax.Array, none: None = None) -> None:
            @pl.when(i < num_tiles)
            def _() -> None:
                @pl.when(i >= in_flight)
                def _() -> None:
                    write(i - in_flight).wait()

                for copy in reads(i):
                    copy.start()

        def one_tile(i: jax.Array, _: None) -> None:
            start_reads(i + ahead)
            for copy in reads(i):
                copy.wait()
            nth = turn_of(i)
            first, last = refs.tile_first_W[i], refs.tile_last_W[i]
            is_new = words_where(lambda row: (row >= first) & (row < last), tile, width, dtype)
            for head in np.ndindex(*heads):
                put_where(is_new, old.at[(nth, *head)], new[(nth, *head)])
            write(i).start()

        def end(i: jax.Array, _: None) -> None:
            write(i).wait()

        jax.lax.fori_loop(0, ahead, start_reads, None)
        jax.lax.fori_loop(0, num_tiles, one_tile, None)
        jax.lax.fori_loop(jnp.maximum(num_tiles - in_flight, 0), num_tiles, end, None)

    tiles = pltpu.VMEM((in_flight, *heads, tile, width), dtype)
    semaphores = pltpu.SemaphoreType.DMA((in_flight,))
    pl.run_scoped(scoped, tiles, tiles, semaphores, semaphores)
