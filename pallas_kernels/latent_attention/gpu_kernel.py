"""The Hopper kernel: tiles of latent queries walk over the latents that they see.

All heads of a token share one latent a position, which is key and value at once, so a block of
positions is copied once for both products. A tile of 64 rows (heads, or tokens times heads) sums
64 x R values: half the registers of a multiprocessor, so that a block of the grid is one tile. Its
warpgroups have roles, and hand on what they made through shared memory:

- one copies queries and blocks of latents by TMA, across tiles;
- one scores: logits, masks, and the weights of a softmax that runs along (FlashAttention, arXiv
  2205.14135), which it rounds and stores together with the decay of what was summed before;
- two sum values, each one half of the R columns, so that no product is computed twice.

As in the kernel of ragged paged attention, blocks of the grid stay and take every n-th unit of
work, and a decode row is cut into several items (split-KV) that are joined outside.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from pallas_kernels import compat
from pallas_kernels.gpu_chips import NUM_SMS
from pallas_kernels.gpu_swizzle import swizzled
from pallas_kernels.latent_attention.gpu_tuning import BLOCK, HALVES, PART, TILE, Tiles
from pallas_kernels.paging import gpu_units
from pallas_kernels.paging.gpu_units import Item, along_rows, for_each_unit, owned_end
from pallas_kernels.paging.options import Options
from pallas_kernels.paging.softmax import LOG2_E, NO_TOP

SCORER, LOADER = HALVES, HALVES + 1
"""The warpgroups after those that sum."""

INTERPRETED_BLOCKS = 1
"""Blocks of the grid in the interpreter, which compiles the kernel anew for each warpgroup."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The static shape of a launch. A tile's rows are a group of heads times query tokens, head by
    head."""

    tiles: Tiles
    latent_rank: int
    rope_dim: int
    out_dtype: Any
    interpret: bool

    @property
    def num_blocks(self) -> int:
        return INTERPRETED_BLOCKS if self.interpret else NUM_SMS

    @property
    def parts(self) -> int:
        """Parts of ``PART`` columns that a latent has."""
        return self.latent_rank // PART

    def in_tile_layout(self, x: jax.Array) -> jax.Array:
        return gpu_units.in_tile_layout(x, interpret=self.interpret)


def attend(
    plan: Plan,
    options: Options,
    num_items_1: jax.Array,
    items_I8: jax.Array,
    page_table_SM: jax.Array,
    q_latent_XGQR: jax.Array,
    q_rope_XGQr: jax.Array,
    latent_PpR: jax.Array,
    rope_Ppr: jax.Array,
    *,
    num_outs: int,
) -> tuple[jax.Array, jax.Array]:
    """Runs the items for each of G groups of heads; returns ``(out [Y, G, Q, R], lse [Y, G, Q])``,
    Y = ``num_outs``.

    Queries have the dtype of the pages, Q = ``plan.tiles.rows``. ``out`` is the average over the
    positions that an item sees, ``lse`` the binary logarithm of the sum of their weights (very
    negative where it saw nothing). Outs that no item names are not written.
    """
    tile = (num_outs, q_latent_XGQR.shape[1])
    kernel = plgpu.kernel(
        functools.partial(_kernel, plan, options),
        out_type=(
            jax.ShapeDtypeStruct((*tile, plan.tiles.rows, plan.latent_rank), plan.out_dtype),
            jax.ShapeDtypeStruct((*tile, plan.tiles.rows), jnp.float32),
        ),
        grid=(plan.num_blocks,),
        grid_names=("block",),
        num_threads=HALVES + 2,
        thread_name="warpgroup",
        interpret=compat.gpu_interpreter() if plan.interpret else None,
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Warpgroup,
            approx_math=True,
            # Sums and maxima along a row stay in a quarter of a warp, and memory is scarce.
            reduction_scratch_bytes=0,
        ),
    )
    queries = (q_latent_XGQR, q_rope_XGQr)
    return kernel(num_items_1, items_I8, page_table_SM, *queries, latent_PpR, rope_Ppr)


@dataclass(frozen=True)
class _Refs:
    """Global memory."""

    num_items_1: Any
    items_I8: Any
    page_table_SM: Any
    q_latent_XGQR: Any
    q_rope_XGQr: Any
    latent_PpR: Any
    rope_Ppr: Any
    out_YGQR: Any
    lse_YGQ: Any

    def for_each_unit(self, num_blocks: int, take: Any) -> tuple[jax.Array, jax.Array]:
        num_groups = self.q_latent_XGQR.shape[1]
        return for_each_unit(self.num_items_1, self.items_I8, num_groups, num_blocks, take)


@dataclass(frozen=True)
class _Shared:
    """Shared memory, and the barriers that say what is in it (ready) and what is read (free).

    ``factor`` is what sums are multiplied with, before ``weights`` are added or at the end. ``out``
    is the memory of ``q_latent``, which is free when sums are.
    """

    q_latent: Any
    out: Any
    q_rope: Any
    latent: Any
    rope: Any
    weights: Any
    factor: Any
    lse: Any
    q_ready: Any
    q_free: Any
    block_ready: Any
    block_free: Any
    weights_ready: Any
    weights_free: Any


def _kernel(plan: Plan, options: Options, *refs: Any) -> None:
    gmem = _Refs(*refs)
    dtype = gmem.latent_PpR.dtype

    def run(queries: Any, *scratch: Any) -> None:
        shared = _Shared(*queries, *scratch)
        warpgroup = jax.lax.axis_index("warpgroup")

        @pl.when(warpgroup < HALVES)
        def _() -> None:
            _take_registers(plan.tiles.sum_registers)
            _sum(plan, gmem, shared, warpgroup)

        @pl.when(warpgroup == SCORER)
        def _() -> None:
            _take_registers(plan.tiles.score_registers)
            _score(plan, options, gmem, shared)

        @pl.when(warpgroup == LOADER)
        def _() -> None:
            _take_registers(plan.tiles.load_registers)
            _load(plan, gmem, shared)

    queries = (
        swizzled((plan.parts, TILE, PART), dtype),
        swizzled((HALVES, TILE, PART), plan.out_dtype),
    )
    pl.run_scoped(
        run,
        # The interpreter knows no two views of one memory.
        queries if plan.interpret else plgpu.RefUnion(*queries),
        swizzled((TILE, plan.rope_dim), dtype),
        swizzled((plan.tiles.stages, plan.parts, BLOCK, PART), dtype),
        swizzled((plan.tiles.stages, BLOCK, plan.rope_dim), dtype),
        swizzled((TILE, BLOCK), dtype),
        plgpu.SMEM((TILE,), jnp.float32),
        plgpu.SMEM((TILE,), jnp.float32),
        plgpu.Barrier(num_arrivals=plan.parts + 1),  # One for each copy.
        plgpu.Barrier(num_arrivals=HALVES),
        plgpu.Barrier(num_arrivals=plan.parts + 1, num_barriers=plan.tiles.stages),
        plgpu.Barrier(num_arrivals=HALVES, num_barriers=plan.tiles.stages),
        plgpu.Barrier(),
        plgpu.Barrier(num_arrivals=HALVES),
        collective_axes="warpgroup",
    )


def _take_registers(number: int) -> None:
    """Registers of a thread from here on; all began with an equal share."""
    share = 64 * 1024 // (128 * (HALVES + 2))
    plgpu.set_max_registers(number, action="increase" if number > share else "decrease")


def _load(plan: Plan, gmem: _Refs, shared: _Shared) -> None:
    """The warpgroup that copies."""
    blocks_per_page = jnp.int32(gmem.latent_PpR.shape[1] // BLOCK)
    parts = [pl.ds(part * PART, PART) for part in range(plan.parts)]

    def load_queries(item: Item, group: jax.Array) -> None:
        place = (item["query"], group)
        for part, columns in enumerate(parts):
            plgpu.copy_gmem_to_smem(
                gmem.q_latent_XGQR.at[(*place, slice(None), columns)],
                _top(plan, shared.q_latent.at[part]),
                shared.q_ready,
            )
        plgpu.copy_gmem_to_smem(
            gmem.q_rope_XGQr.at[place], _top(plan, shared.q_rope), shared.q_ready
        )

    def load_unit(count, item, group, step):
        def load_block(index: jax.Array, step: jax.Array) -> jax.Array:
            slot = jax.lax.rem(step, jnp.int32(plan.tiles.stages))
            block = item["first_block"] + index
            page = gmem.page_table_SM[item["row"], jax.lax.div(block, blocks_per_page)]
            # Written as a product: the compiler must see that it is a multiple of a tile.
            place = (page, pl.ds(jax.lax.rem(block, blocks_per_page) * BLOCK, BLOCK))
            ready = shared.block_ready.at[slot]
            pl.when(step >= plan.tiles.stages)(
                lambda: plgpu.barrier_wait(shared.block_free.at[slot])
            )

            @pl.when(page > 0)
            def _() -> None:
                for part, columns in enumerate(parts):
                    source = gmem.latent_PpR.at[(*place, columns)]
                    plgpu.copy_gmem_to_smem(source, shared.latent.at[slot, part], ready)
                plgpu.copy_gmem_to_smem(gmem.rope_Ppr.at[place], shared.rope.at[slot], ready)

            @pl.when(page <= 0)
            def _() -> None:
                for _ in range(plan.parts + 1):
                    plgpu.barrier_arrive(ready)

            return step + 1

        # The first blocks do not wait for the tile before to leave, whose memory queries take.
        ahead = jnp.minimum(item["num_blocks"], plan.tiles.stages)
        step = jax.lax.fori_loop(0, ahead, load_block, step)
        pl.when(count > 0)(lambda: plgpu.barrier_wait(shared.q_free))
        load_queries(item, group)
        return jax.lax.fori_loop(ahead, item["num_blocks"], load_block, step)

    num_units, steps = gmem.for_each_unit(plan.num_blocks, load_unit)
    pl.when(num_units > 0)(lambda: plgpu.barrier_wait(shared.q_free))

    @pl.loop(0, jnp.minimum(steps, plan.tiles.stages))
    def _(slot: jax.Array) -> None:
        plgpu.barrier_wait(shared.block_free.at[slot])


def _score(plan: Plan, options: Options, gmem: _Refs, shared: _Shared) -> None:
    """The warpgroup that turns blocks of positions into weights."""

    def hand_on(is_first: jax.Array, factor: jax.Array, weights: jax.Array | None) -> None:
        pl.when(~is_first)(lambda: plgpu.barrier_wait(shared.weights_free))
        shared.factor[...] = factor
        if weights is not None:
            shared.weights[...] = weights.astype(shared.weights.dtype)
        plgpu.commit_smem()
        plgpu.barrier_arrive(shared.weights_ready)

    def score_unit(count, item, group, step):
        plgpu.barrier_wait(shared.q_ready)

        def score_block(index: jax.Array, carry: Any) -> Any:
            top, total = carry
            slot = jax.lax.rem(step + index, jnp.int32(plan.tiles.stages))
            place = (item["first_block"] + index) * BLOCK
            end = owned_end(gmem.page_table_SM, gmem.latent_PpR.shape[1], item, place)
            plgpu.barrier_wait(shared.block_ready.at[slot])
            logits = _logits(plan, shared, slot) * (options.scale * LOG2_E)
            logits = jnp.where(_sees(plan, options, item, place, end), logits, -jnp.inf)
            pl.when(place + BLOCK > end)(lambda: _clean(plan, shared.latent.at[slot], end - place))

            new_top = jnp.maximum(top, logits.max(axis=1))
            weights = jnp.exp2(logits - along_rows(new_top, logits.shape))
            decay = jnp.exp2(top - new_top)
            hand_on((count == 0) & (index == 0), decay, weights)
            return new_top, total * decay + weights.sum(axis=1)

        no_top = plan.in_tile_layout(jnp.full((TILE,), NO_TOP, jnp.float32))
        no_total = plan.in_tile_layout(jnp.zeros((TILE,), jnp.float32))
        num_blocks = item["num_blocks"]
        top, total = jax.lax.fori_loop(0, num_blocks, score_block, (no_top, no_total))

        total = jnp.where(total > 0, total, 1.0)
        hand_on((count == 0) & (num_blocks == 0), 1.0 / total, None)
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        shared.lse[...] = top + jnp.log(total) * LOG2_E
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(_top(plan, shared.lse), gmem.lse_YGQ.at[item["out"], group])
        return step + num_blocks

    num_units, _ = gmem.for_each_unit(plan.num_blocks, score_unit)
    pl.when(num_units > 0)(lambda: plgpu.barrier_wait(shared.weights_free))
    plgpu.wait_smem_to_gmem(0)


def _sum(plan: Plan, gmem: _Refs, shared: _Shared, half: jax.Array) -> None:
    """A warpgroup that sums one half of the columns."""
    out = shared.out.at[half]
    parts = plan.parts // HALVES
    first = half * parts

    def decayed(sums: jax.Array) -> jax.Array:
        factor = plan.in_tile_layout(shared.factor[...])
        return sums * along_rows(factor, sums.shape)

    def sum_unit(count, item, group, step):
        del count

        def sum_block(index: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            slot = jax.lax.rem(step + index, jnp.int32(plan.tiles.stages))
            plgpu.barrier_wait(shared.block_ready.at[slot])
            plgpu.barrier_wait(shared.weights_ready)
            values = [shared.latent.at[slot, first + n] for n in range(parts)]
            sums = _add_products(plan, tuple(map(decayed, sums)), shared.weights, values)
            plgpu.barrier_arrive(shared.weights_free)
            plgpu.barrier_arrive(shared.block_free.at[slot])
            return sums

        zeros = plan.in_tile_layout(jnp.zeros((TILE, PART), jnp.float32))
        sums = jax.lax.fori_loop(0, item["num_blocks"], sum_block, (zeros,) * parts)
        plgpu.barrier_wait(shared.weights_ready)
        for n in range(parts):
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            out[...] = decayed(sums[n]).astype(plan.out_dtype)
            plgpu.commit_smem()
            columns = pl.ds((first + n) * PART, PART)
            target = gmem.out_YGQR.at[item["out"], group, :, columns]
            plgpu.copy_smem_to_gmem(_top(plan, out), target)
        plgpu.barrier_arrive(shared.weights_free)
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        plgpu.barrier_arrive(shared.q_free)
        return step + item["num_blocks"]

    gmem.for_each_unit(plan.num_blocks, sum_unit)
    plgpu.wait_smem_to_gmem(0)


def _top(plan: Plan, tile: Any) -> Any:
    """The rows of a tile that are in use."""
    return tile if plan.tiles.rows == TILE else tile.at[pl.ds(0, plan.tiles.rows)]


def _sees(plan: Plan, options: Options, item: Item, place: jax.Array, end: jax.Array) -> jax.Array:
    """Which of the positions from ``place`` on the rows of a tile see."""
    shape = (TILE, BLOCK)
    position = item["position"]
    column = plan.in_tile_layout(jax.lax.broadcasted_iota(jnp.int32, shape, 1))
    if options.causal and plan.tiles.queries == 1:
        end = jnp.minimum(end, position + 1)
    sees = column < end - place
    if not options.causal or plan.tiles.queries == 1:
        return sees
    # One number a row, not one a position: registers are scarce.
    row = plan.in_tile_layout(jax.lax.broadcasted_iota(jnp.int32, shape[:1], 0))
    query = (row & (plan.tiles.queries - 1)) + (position - place)
    return sees & (column <= along_rows(query, shape))


def _clean(plan: Plan, latent: Any, num_held: jax.Array) -> None:
    """Makes latents behind the first ``num_held`` zero: a weight of zero times NaN would be NaN."""

    @pl.loop(0, plan.parts)
    def _(part: jax.Array) -> None:
        for start in range(0, PART, 64):
            columns = latent.at[part, :, pl.ds(start, 64)]
            held = plan.in_tile_layout(columns[...])
            row = plan.in_tile_layout(jax.lax.broadcasted_iota(jnp.int32, held.shape, 0))
            columns[...] = jnp.where(row < num_held, held, jnp.zeros_like(held))


def _logits(plan: Plan, shared: _Shared, slot: jax.Array) -> jax.Array:
    """Queries times latents and their rotated parts, in float32 by WGMMA from shared memory.

    The interpreter's WGMMA takes no transposed operand: there they are plain products. A loop over
    parts, not unrolled: where queries are would fill the registers.
    """
    if plan.interpret:
        parts = range(plan.parts)
        pairs = [(shared.q_latent.at[part], shared.latent.at[slot, part]) for part in parts]
        pairs.append((shared.q_rope, shared.rope.at[slot]))
        dimensions = (((1,), (1,)), ((), ()))
        products = (
            jax.lax.dot_general(q[...], k[...], dimensions, preferred_element_type=jnp.float32)
            for q, k in pairs
        )
        return functools.reduce(jnp.add, products)

    def multiply(accumulator: Any) -> jax.Array:
        @pl.loop(0, plan.parts)
        def _(part: jax.Array) -> None:
            k = shared.latent.at[slot, part]
            plgpu.wgmma(accumulator, shared.q_latent.at[part], k.transpose((1, 0)))

        plgpu.wgmma(accumulator, shared.q_rope, shared.rope.at[slot].transpose((1, 0)))
        return accumulator[...]

    return pl.run_scoped(multiply, plgpu.ACC((TILE, BLOCK), jnp.float32))


def _add_products(
    plan: Plan, sums: tuple[jax.Array, ...], weights: Any, values: list[Any]
) -> tuple[jax.Array, ...]:
    """``sums + weights @ values`` in float32 by WGMMA, in the registers that hold ``sums``.

    The interpreter's WGMMA takes nothing from registers: there they are plain products.
    """
    if plan.interpret:
        return tuple(
            part + jnp.dot(weights[...], value[...], preferred_element_type=jnp.float32)
            for part, value in zip(sums, values, strict=True)
        )

    def multiply(accumulators: tuple[Any, ...]) -> None:
        for accumulator, value in zip(accumulators, values, strict=True):
            plgpu.wgmma(accumulator, weights, value)

    return pl.run_state(multiply)(tuple(plgpu.ACC.init(part) for part in sums))
