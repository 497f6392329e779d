"""From a model and limits to an engine that never compiles again."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp

from jaxinfer.checkpoint.load import Progress, no_progress
from jaxinfer.decoding.programs import ProgramShapes, ProgramTable
from jaxinfer.engine.engine import Engine
from jaxinfer.engine.limits import EngineLimits
from jaxinfer.engine.memory import (
    CPU_POOL_BYTES,
    MemoryBudget,
    cache_groups,
    device_page_bytes,
    exhaustion_is_capacity_error,
    fitting_pages,
    pool_bytes,
    usable_memory,
)
from jaxinfer.engine.runner import DeviceRunner
from jaxinfer.errors import CapacityError, InvalidParameter
from jaxinfer.models.layout import for_decoding
from jaxinfer.models.loading import DTYPES, Model
from jaxinfer.tokenizer import Tokenizer
from pallas_kernels.ragged_paged_attention import XLA_PAGE_SIZES


def verify_page_size(page_size: int) -> None:
    """Refuses what only the plain reference of attention could run, many times slower.

    Raises:
        InvalidParameter: it is none of those that a fast kernel takes.
    """
    if page_size not in XLA_PAGE_SIZES:
        raise InvalidParameter(
            f"page_size = {page_size} is not allowed: it must be one of"
            f" {', '.join(map(str, XLA_PAGE_SIZES))}; leave it out for 64"
        )


@exhaustion_is_capacity_error()
def build_engine(
    model: Model,
    tokenizer: Tokenizer | None,
    *,
    max_num_seqs: int = 8,
    max_num_batched_tokens: int = 512,
    prefill_tokens: Sequence[int] | None = None,
    page_size: int = 64,
    num_pages: int | None = None,
    kv_cache_dtype: str = "auto",
    memory_utilization: float = 0.9,
    enable_prefix_caching: bool = True,
    decode_steps: Sequence[int] = (1,),
    prompt_logprobs: bool = True,
    seed: int = 0,
    release_weights: bool = False,
    progress: Progress = no_progress,
) -> Engine:
    """Plans memory, compiles and warms every program, and makes an engine of them.

    ``prefill_tokens``: sizes of the prefill programs, ascending, the last being
    ``max_num_batched_tokens``; None chooses a short ladder. ``page_size``: 8, 16, 32, 64, 128 or
    256. ``memory_utilization``: the share of the device's memory that everything together may take.
    ``release_weights``: nobody else uses ``model``; see ``layout.for_decoding``.

    Raises:
        InvalidParameter: a parameter out of its range.
        CapacityError: the memory does not hold weights, temporaries and a few pages.
    """
    verify_page_size(page_size)
    limits = EngineLimits(
        max_model_len=model.max_len,
        vocab_size=model.config.vocab_size,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        page_size=page_size,
        decode_steps=tuple(decode_steps),
        enable_prefix_caching=enable_prefix_caching,
    )
    room = usable_memory(model.mesh, memory_utilization)
    num_slots = max_num_seqs
    # Blocks keep the weights twice, and joining copies them where they are not released; the other
    # half of the memory is for pages and temporaries.
    if 2 * model.device_weight_bytes < room // 2:
        model = for_decoding(model, num_slots, release=release_weights)
    if not model.is_blocked and model.mesh.devices.flat[0].platform == "cpu":
        # XLA:CPU multiplies one row with plain 16-bit weights far slower than two.
        num_slots = max(2, num_slots)
    kv_dtype = _kv_dtype(kv_cache_dtype, model)
    ladder = _ladder(limits, prefill_tokens)

    def table_with(pages: int) -> ProgramTable:
        groups = cache_groups(model.config, limits, pages)
        shapes = ProgramShapes(
            num_slots=num_slots,
            pages_per_sequence=-(-limits.max_model_len // page_size),
            page_size=page_size,
            num_pages=tuple(group.num_pages for group in groups),
            kv_dtype=kv_dtype,
            prefill_tokens=ladder,
            decode_steps=limits.decode_steps,
            # Samples of one prompt share a partly filled page only while they run side by side.
            copies=16 if max_num_seqs > 1 else 0,
            score_rows=min(64, ladder[0]) if prompt_logprobs else 0,
        )
        return ProgramTable(model, shapes)

    page_bytes = device_page_bytes(model.config, page_size, kv_dtype, model.mesh)

    def compiled_with(num_pages: int) -> tuple[ProgramTable, MemoryBudget]:
        table = table_with(num_pages)
        table.compile(progress)
        budget = MemoryBudget(
            weights=model.device_weight_bytes,
            slots=table.slot_bytes(),
            temporaries=table.temporary_bytes(),
            pages=pool_bytes(model.config, limits, num_pages, page_bytes),
            limit=room,
            num_pages=table.shapes.num_pages,
            page_size=page_size,
        )
        return table, budget

    if num_pages is not None:
        pages = pool_bytes(model.config, limits, num_pages, page_bytes)
        if pages > room:
            raise CapacityError(
                f"num_pages = {num_pages} takes {pages:,} bytes, and {room:,} may be used: lower it"
            )
        table, budget = compiled_with(num_pages)
    else:
        num_pages = _num_pages(model, limits, page_bytes, room, table_with)
        table, budget = compiled_with(num_pages)
        if budget.total > room:
            # The first guess left too little for temporaries; now they are known.
            left = room - (budget.total - budget.pages)
            num_pages = fitting_pages(model.config, limits, page_bytes, left)
            table, budget = compiled_with(num_pages)
    if budget.total > room:
        raise CapacityError(f"{budget}: lower num_pages, max_num_seqs or max_num_batched_tokens")
    groups = cache_groups(model.config, limits, num_pages)
    eos_token_ids = {*model.config.eos_token_ids, *(tokenizer.eos_token_ids if tokenizer else ())}
    runner = DeviceRunner(
        table, limits, groups, budget=budget, eos_token_ids=sorted(eos_token_ids), seed=seed
    )
    runner.warm_up()
    return Engine(runner, tokenizer)


def _num_pages(
    model: Model,
    limits: EngineLimits,
    page_bytes: tuple[int, ...],
    room: int,
    table_with: Callable[[int], ProgramTable],
) -> int:
    """Pages of the first group for the memory that weights and temporaries leave."""
    room -= model.device_weight_bytes
    if model.mesh.devices.flat[0].platform == "cpu":
        # Compiling twice at every start would cost a newcomer seconds; half of what is left is
        # far more than the temporaries take, and the budget is checked once they are known.
        room = min(CPU_POOL_BYTES, room // 2)
    else:
        # No program's temporaries grow with the pool, so the smallest one tells them.
        probe = table_with(2)
        probe.compile(only=probe.largest)
        room -= probe.temporary_bytes() + probe.slot_bytes()
    return fitting_pages(model.config, limits, page_bytes, room)


def _kv_dtype(kv_cache_dtype: str, model: Model) -> str:
    if kv_cache_dtype == "auto":
        return jnp.dtype(model.dtype).name
    if kv_cache_dtype not in DTYPES:
        raise InvalidParameter(
            f"kv_cache_dtype = {kv_cache_dtype!r} must be auto, {', '.join(DTYPES)}"
        )
    return kv_cache_dtype


def _ladder(limits: EngineLimits, prefill_tokens: Sequence[int] | None) -> tuple[int, ...]:
    """The sizes of the prefill programs. Each size costs a compilation, a missing one padding."""
    most = limits.max_num_batched_tokens
    if prefill_tokens is None:
        return tuple(sorted({max(most // 4, min(32, most)), most}))
    ladder = tuple(prefill_tokens)
    if not ladder or ladder[-1] != most or list(ladder) != sorted(set(ladder)) or ladder[0] < 1:
        raise InvalidParameter(
            f"prefill_tokens = {ladder} must be ascending and end with max_num_batched_tokens ="
            f" {most}"
        )
    return ladder
