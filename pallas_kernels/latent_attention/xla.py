"""Latent attention in plain XLA: what the CPU runs.

All heads share the latents, so the heads of a few tokens are the rows of one matrix, and each block
of positions costs two large products with it: [rows, R + r] x [R + r, positions] for the logits,
[rows, positions] x [positions, R + r] for the sums. A tile holds the queries of one token where the
row has no more, and else those of several; it walks over the blocks it can see, as in
FlashAttention-2 (arXiv 2307.08691). Both loops have dynamic trip counts: what is not in the batch
costs nothing.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.latent_attention.pages import LatentPages, stored_tokens, write_tokens
from pallas_kernels.nonnegative import divide_up, take
from pallas_kernels.paging import softmax
from pallas_kernels.paging.options import Options
from pallas_kernels.paging.pool import take_pages, to_float32
from pallas_kernels.paging.rows import Rows, describe_rows, needed_parts, token_pages
from pallas_kernels.paging.softmax import Softmax
from pallas_kernels.paging.tiles import list_tiles

BLOCK_POSITIONS = 256
"""Positions that a step of a tile reads; a larger page is read whole."""

TILE_ROWS = (128, 512)
"""The least and the largest matrix of a tile, heads times tokens, for rows of several tokens."""


class Unwritten(NamedTuple):
    """Stored bits of new latents that are not in the pages, and which of them would be: a position
    that is in no page is not seen."""

    bits_TW: jax.Array
    has_page_T: jax.Array


class Call(NamedTuple):
    """What every tile reads."""

    q_latent_TNR: jax.Array
    q_rope_TNr: jax.Array
    pages: LatentPages
    rows: Rows
    unwritten: Unwritten | None
    options: Options


def latent_attention(
    q_latent_TNR: jax.Array,
    q_rope_TNr: jax.Array,
    latent_TR: jax.Array | None,
    rope_Tr: jax.Array | None,
    latent_pages: LatentPages,
    kv_lens_S: jax.Array,
    page_table_SM: jax.Array,
    cu_q_lens_S1: jax.Array,
    distribution_3: jax.Array,
    options: Options,
) -> tuple[jax.Array, LatentPages]:
    num_tokens, num_heads, _ = q_latent_TNR.shape
    rows = describe_rows(
        num_tokens,
        latent_pages.num_pages,
        latent_pages.page_size,
        kv_lens_S,
        page_table_SM,
        cu_q_lens_S1,
        distribution_3,
    )
    unwritten = None
    if latent_TR is not None and rope_Tr is not None:
        bits_TW = stored_tokens(latent_TR, rope_Tr, latent_pages.dtype)
        page_T, offset_T = token_pages(rows, latent_pages.page_size)
        if options.update_kv_cache:
            latent_pages = write_tokens(latent_pages, bits_TW, page_T, offset_T)
        else:
            # A slice is never longer than what it is cut from.
            unwritten = Unwritten(
                jnp.pad(bits_TW, ((0, BLOCK_POSITIONS), (0, 0))),
                jnp.pad(page_T > 0, (0, BLOCK_POSITIONS)),
            )
    call = Call(q_latent_TNR, q_rope_TNr, latent_pages, rows, unwritten, options)
    has_singles, has_others = needed_parts(distribution_3)
    is_single_S = (rows.q_lens_S == 1) & has_singles
    out_TNR = jnp.zeros(q_latent_TNR.shape, jnp.float32)
    if has_singles:
        out_TNR = _attend(call, is_single_S, 1, out_TNR)
    if has_others:
        tile_tokens = _tile_tokens(num_tokens, rows.q_lens_S.size, num_heads)
        out_TNR = _attend(call, ~is_single_S, tile_tokens, out_TNR)
    return out_TNR.astype(q_latent_TNR.dtype), latent_pages


def _tile_tokens(num_tokens: int, num_slots: int, num_heads: int) -> int:
    """Near the tokens that a row has in a program of these static sizes: lanes beyond a row's last
    token are computed as well."""
    least, largest = (max(size // num_heads, 1) for size in TILE_ROWS)
    return min(max(-(-num_tokens // num_slots), least), largest, num_tokens)


class Tile(NamedTuple):
    """One tile: the queries of t tokens as a matrix of X rows, t times N; and their row."""

    q_XW: jax.Array
    position_t: jax.Array
    row: jax.Array
    cached_len: jax.Array
    kv_len: jax.Array


def _attend(call: Call, takes_S: jax.Array, tile_tokens: int, out_TNR: jax.Array) -> jax.Array:
    """Attends in tiles of ``tile_tokens`` queries; the part of ``out_TNR`` of the rows in
    ``takes_S`` is replaced."""
    rows = call.rows
    num_tiles, tiles = list_tiles(rows, takes_S, tile_tokens)
    lane_t = jnp.arange(tile_tokens, dtype=jnp.int32)

    def take_tile(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        index, out_TNR = state
        row, token, position, num_queries = (take(x, index) for x in tiles)
        tile = Tile(
            q_XW=_queries(call, token + lane_t),
            position_t=position + lane_t,
            row=row,
            cached_len=take(rows.kv_lens_S - rows.q_lens_S, row),
            kv_len=take(rows.kv_lens_S, row),
        )
        softmax_X = softmax.begin(tile.q_XW.shape[:1], call.pages.latent_rank, None)
        seen_len = position + num_queries if call.options.causal else tile.kv_len
        if call.unwritten is None:
            softmax_X = _attend_pages(call, tile, seen_len, softmax_X)
        else:
            seen_len = jnp.minimum(seen_len, tile.cached_len)
            softmax_X = _attend_pages(call, tile, seen_len, softmax_X)
            softmax_X = _attend_unwritten(call, tile, softmax_X, call.unwritten)
        token_t = jnp.where(lane_t < num_queries, token + lane_t, out_TNR.shape[0])
        new_tNR = softmax.finish(softmax_X).reshape(tile_tokens, *out_TNR.shape[1:])
        out_TNR = out_TNR.at[token_t].set(new_tNR, mode="drop", wrap_negative_indices=False)
        return index + 1, out_TNR

    _, out_TNR = jax.lax.while_loop(
        lambda state: state[0] < num_tiles, take_tile, (jnp.int32(0), out_TNR)
    )
    return out_TNR


def _queries(call: Call, token_t: jax.Array) -> jax.Array:
    """Float32 ``[X, W]`` queries of some tokens, with the scale of the logits in them."""
    q_tNW = jnp.concatenate([take(call.q_latent_TNR, token_t), take(call.q_rope_TNr, token_t)], -1)
    q_tNW = q_tNW.astype(jnp.float32) * jnp.float32(call.options.scale)
    return q_tNW.reshape(-1, q_tNW.shape[-1])


def _attend_pages(call: Call, tile: Tile, seen_len: jax.Array, softmax_X: Softmax) -> Softmax:
    """Adds the first ``seen_len`` positions of the row's pages, a block at a time."""
    page_size = call.pages.page_size
    page_M = take(call.rows.page_table_SM, tile.row)
    block_pages = min(max(BLOCK_POSITIONS // page_size, 1), page_M.size)
    block = block_pages * page_size

    def take_block(index: jax.Array, softmax_X: Softmax) -> Softmax:
        page_b = index * block_pages + jnp.arange(block_pages, dtype=jnp.int32)
        id_b = jnp.where(page_b < page_M.size, take(page_M, page_b), 0)
        position_C = index * block + jnp.arange(block, dtype=jnp.int32)
        is_held_C = (position_C < seen_len) & jnp.repeat(id_b > 0, page_size)
        bits_CW = take_pages(call.pages.latents_PpW, id_b).reshape(block, -1)
        return _add_block(call, tile, softmax_X, bits_CW, position_C, is_held_C)

    return jax.lax.fori_loop(0, divide_up(seen_len, block), take_block, softmax_X)


def _attend_unwritten(call: Call, tile: Tile, softmax_X: Softmax, unwritten: Unwritten) -> Softmax:
    """Adds the row's new latents, which were not written."""
    lane_C = jnp.arange(BLOCK_POSITIONS, dtype=jnp.int32)
    num_new = tile.kv_len - tile.cached_len

    def take_block(index: jax.Array, softmax_X: Softmax) -> Softmax:
        first = index * BLOCK_POSITIONS
        token = take(call.rows.q_starts_S, tile.row) + first
        bits_CW, has_page_C = (
            jax.lax.dynamic_slice_in_dim(x_T, token, BLOCK_POSITIONS) for x_T in unwritten
        )
        position_C = tile.cached_len + first + lane_C
        is_held_C = has_page_C & (first + lane_C < num_new)
        return _add_block(call, tile, softmax_X, bits_CW, position_C, is_held_C)

    return jax.lax.fori_loop(0, divide_up(num_new, BLOCK_POSITIONS), take_block, softmax_X)


def _add_block(
    call: Call,
    tile: Tile,
    old: Softmax,
    bits_CW: jax.Array,
    position_C: jax.Array,
    is_held_C: jax.Array,
) -> Softmax:
    """One step of the online softmax of a tile over C positions, given as stored bits."""
    # What is not held may be NaN, which a weight of 0 does not silence.
    latents_CW = to_float32(bits_CW, call.pages.dtype)
    latents_CW = jnp.where(is_held_C[:, None], latents_CW, 0.0)
    sees_tC = jnp.broadcast_to(is_held_C[None, :], (tile.position_t.size, position_C.size))
    if call.options.causal:
        sees_tC &= position_C[None, :] <= tile.position_t[:, None]
    logits_XC = jnp.einsum("XW,CW->XC", tile.q_XW, latents_CW)
    sees_XC = jnp.repeat(sees_tC, logits_XC.shape[0] // sees_tC.shape[0], axis=0)
    logits_XC = jnp.where(sees_XC, logits_XC, -jnp.inf)
    top_X = jnp.maximum(old.top, softmax.top_of(logits_XC.max(axis=-1)))
    weights_XC = softmax.weights_of(logits_XC, top_X)
    decay_X = softmax.power_of_two(old.top - top_X)
    # A product with the latents alone would first copy them out of their rows.
    values_XW = jnp.einsum("XC,CW->XW", weights_XC, latents_CW)
    values_XR = values_XW[:, : call.pages.latent_rank]
    sums_XR1 = softmax.join(values_XR, weights_XC.sum(axis=-1))
    return Softmax(top_X, old.sums * decay_X[:, None] + sums_XR1)
