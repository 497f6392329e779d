"""Rows cut into tiles of queries, listed so that a loop can take them one at a time.

No layer enters the list, so XLA computes it once for all layers of a program.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.nonnegative import count_ends, divide_up, take
from pallas_kernels.paging.rows import Rows


class Tiles(NamedTuple):
    """The tiles of some rows; J is an upper bound of their number.

    The first query of a tile is that of token ``token_J`` and stands at ``position_J``.
    """

    row_J: jax.Array
    token_J: jax.Array
    position_J: jax.Array
    num_queries_J: jax.Array


def list_tiles(rows: Rows, is_tiled_S: jax.Array, tile_size: int) -> tuple[jax.Array, Tiles]:
    """The number of tiles, and the tiles."""
    num_slots = rows.q_lens_S.size
    num_tiles_S = jnp.where(is_tiled_S, divide_up(rows.q_lens_S, tile_size), 0)
    ends_S = jnp.cumsum(num_tiles_S, dtype=jnp.int32)
    tile_J = jnp.arange(rows.row_T.size // tile_size + num_slots, dtype=jnp.int32)
    row_J = jnp.minimum(count_ends(ends_S, tile_J), num_slots - 1)
    first_J = (tile_J - take(ends_S - num_tiles_S, row_J)) * tile_size
    tiles = Tiles(
        row_J=row_J,
        token_J=take(rows.q_starts_S, row_J) + first_J,
        position_J=take(rows.kv_lens_S - rows.q_lens_S, row_J) + first_J,
        num_queries_J=jnp.minimum(take(rows.q_lens_S, row_J) - first_J, tile_size),
    )
    return ends_S[-1], tiles
