"""New latents into their pages on a TPU: the first half of the attention's kernel, alone.

The kernel writes whole registers. A scatter would go to another unit of the chip.
"""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.latent_attention import tpu_pages
from pallas_kernels.latent_attention.tpu_pages import TpuLatentPages
from pallas_kernels.latent_attention.tpu_tuning import WRITES, write_bytes
from pallas_kernels.nonnegative import take
from pallas_kernels.paging import tpu_rows
from pallas_kernels.paging.pool import rounded_tokens
from pallas_kernels.paging.rows import Rows
from pallas_kernels.paging.tpu_registers import rows_of
from pallas_kernels.paging.tpu_writes import write_tiles


def write_tokens(
    latent_pages: TpuLatentPages,
    latent_TR: jax.Array,
    rope_Tr: jax.Array,
    rows: Rows,
    interpret: bool | pltpu.InterpretParams = False,
) -> TpuLatentPages:
    """Writes one latent and rotary part a token, rounded to the dtype of the pages."""
    # All rows are of one kind here: only where their new tokens begin is of interest.
    order = tpu_rows.order_rows(rows, unit=1, num_places=1)
    tiles = tpu_rows.tile_new_positions(
        rows,
        order,
        page_size=latent_pages.page_size,
        tile=rows_of(latent_pages.dtype),
        margin=0,
    )
    new = in_tiles(latent_TR, rope_Tr, tiles, latent_pages.dtype)
    return latent_pages.replace(_call(interpret, tiles, new, latent_pages.latents_PpW))


def in_tiles(
    latent_TR: jax.Array, rope_Tr: jax.Array, tiles: tpu_rows.NewTiles, dtype: np.dtype
) -> jax.Array:
    """New latents ``[places, lanes]`` as pages of ``dtype`` hold them, in ``tiles``."""
    new_TW = tpu_pages.join(
        rounded_tokens(latent_TR, dtype, None), rounded_tokens(rope_Tr, dtype, None)
    )
    return take(new_TW, tiles.source_t)


class Refs(NamedTuple):
    """The kernel's arrays, in its order; see ``tpu_rows`` for those of int32."""

    num_tiles_1: Any
    tile_from_W: Any
    tile_page_W: Any
    tile_row_W: Any
    tile_first_W: Any
    tile_last_W: Any
    new: Any
    pages: Any


@functools.partial(jax.jit, static_argnums=0)
def _call(
    interpret: bool | pltpu.InterpretParams,
    tiles: tpu_rows.NewTiles,
    new: jax.Array,
    pages: jax.Array,
) -> jax.Array:
    """The kernel itself; compiled for itself, so that it is traced once for all layers."""

    def kernel(*refs: Any) -> None:
        *arrays, _, written = refs  # Pages are read where they are written.
        write_tiles(Refs._make([*arrays, written]), pages.dtype, WRITES)

    hbm = pl.BlockSpec(memory_space=pl.ANY)
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(tiles.writes), grid=(1,), in_specs=[hbm, hbm], out_specs=hbm
        ),
        out_shape=jax.ShapeDtypeStruct(pages.shape, pages.dtype),
        input_output_aliases={len(tiles.writes) + 1: 0},
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary",),
            vmem_limit_bytes=write_bytes(pages.shape[-1]) + 2**20,
        ),
        # New positions are read, and their tiles are read and written.
        cost_estimate=pl.CostEstimate(
            flops=0, transcendentals=0, bytes_accessed=3 * new.size * new.dtype.itemsize
        ),
        interpret=pltpu.InterpretParams() if interpret is True else interpret,
        name="write_latents",
    )(*tiles.writes, new, pages)
