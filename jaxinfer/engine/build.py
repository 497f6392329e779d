"""From a model and limits to an engine that never compiles again."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxinfer.cache import fast_page_sizes
from jaxinfer.checkpoint.load import Progress, no_progress
from jaxinfer.decoding.programs import ProgramShapes, ProgramTable
from jaxinfer.engine.engine import Engine
from jaxinfer.engine.limits import CacheGroup, EngineLimits
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
from jaxinfer.models.layout import for_decoding, layout_note
from jaxinfer.models.model import DTYPES, Model
from jaxinfer.sampling_params import RequestLimits
from jaxinfer.tokenizer import Tokenizer
from pallas_kernels.ragged_paged_attention import XLA_PAGE_SIZES
from sharding import platform_of

#: Rows of the decode programs beside that of all slots. One row alone would gain little over 8.
_DECODE_ROWS = (8, 32)


def verify_page_size(page_size: int, allowed: Sequence[int] = XLA_PAGE_SIZES) -> None:
    """Refuses what only a plain form of attention could run, many times slower.

    ``allowed``: those that the chip's kernel takes, or that any might.

    Raises:
        InvalidParameter: it is none of those.
    """
    if page_size not in allowed:
        raise InvalidParameter(
            f"page_size = {page_size} is not allowed: it must be one of"
            f" {', '.join(map(str, allowed))}; leave it out for 64"
        )


@dataclass(frozen=True, kw_only=True)
class Programs:
    """All that an engine will run, compiled, and the memory it was planned for."""

    table: ProgramTable
    groups: tuple[CacheGroup, ...]
    budget: MemoryBudget


class EngineBuilder:
    """Plans memory and compiles every program for a model of which only the shapes are known.

    So weights can be read in the meantime. Then ``engine`` brings the two together.
    """

    def __init__(
        self,
        blank: Model,
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
        max_waiting_requests: int | None = None,
        max_waiting_tokens: int | None = None,
        request_limits: RequestLimits | None = None,
        releases_weights: bool = False,
    ):
        """
        Args:
            blank: the model; of its parameters only shapes, dtypes and shardings are used.
            prefill_tokens: sizes of the prefill programs, ascending, the last being
                ``max_num_batched_tokens``; None chooses a short ladder.
            page_size: tokens a page; which sizes there are depends on the chip.
            request_limits: what one request may ask for; None is their defaults.
            memory_utilization: the share of the device's memory that everything may take.
            releases_weights: ``lay_out`` may take the weights out of the model that it is given.

        Raises:
            InvalidParameter: a parameter out of its range.
            CapacityError: more pages than the memory holds were asked for.
        """
        self.limits = EngineLimits(
            max_model_len=blank.max_len,
            vocab_size=blank.config.vocab_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            page_size=page_size,
            decode_steps=tuple(decode_steps),
            enable_prefix_caching=enable_prefix_caching,
            max_waiting_requests=max_waiting_requests,
            max_waiting_tokens=max_waiting_tokens,
            request=request_limits or RequestLimits(),
        )
        self._room = usable_memory(blank.mesh, memory_utilization)
        platform = platform_of(blank.mesh)
        is_cpu = platform == "cpu"
        # On a CPU blocks keep the weights twice, and joining copies them where they are not
        # released: half of the memory is left beside them. On an accelerator pages take what is
        # left, and there is no room for a copy.
        fits_twice = 2 * blank.device_weight_bytes < self._room // 2
        self._is_laid_out = fits_twice if is_cpu else releases_weights
        self._model = self.lay_out(blank)
        # XLA:CPU multiplies one row with plain 16-bit weights far slower than two, and XLA:GPU
        # takes twice as many kernels for it, some of which write products as large as the weights.
        has_form = self._model.is_blocked or self._model.is_packed
        least = 1 if platform == "tpu" or has_form else 2
        self._num_slots = max(least, max_num_seqs)
        # On an accelerator a step takes as long as reading the weights, whatever its rows; on a CPU
        # it takes longer with each row, and each program a second or two to compile.
        self._decode_rows = tuple(n for n in _DECODE_ROWS if is_cpu and n < self._num_slots)
        self._num_pages = num_pages
        self._kv_dtype = _kv_dtype(kv_cache_dtype, blank)
        with jax.set_mesh(blank.mesh):
            verify_page_size(page_size, fast_page_sizes(blank.config, self._kv_dtype))
        self._ladder = _ladder(self.limits, prefill_tokens)
        self._has_prompt_logprobs = prompt_logprobs
        self._page_bytes = device_page_bytes(blank.config, page_size, self._kv_dtype, blank.mesh)
        if num_pages is not None:
            pages = self._pool_bytes(num_pages)
            if pages > self._room:
                raise CapacityError(
                    f"num_pages = {num_pages} takes {pages:,} bytes, and {self._room:,} may be"
                    " used: lower it"
                )

    def lay_out(self, model: Model, *, release: bool = False) -> Model:
        """The model as its programs take it. ``release``: see ``layout.for_decoding``."""
        if not self._is_laid_out:
            return model
        return for_decoding(model, self.limits.max_num_seqs, release=release)

    @exhaustion_is_capacity_error()
    def compile(self, progress: Progress = no_progress) -> Programs:
        """Every program, for as many pages as were asked for, or as the memory holds.

        ``progress`` may raise to stop it, see ``ProgramTable.compile``.

        Raises:
            CapacityError: the memory does not hold weights, temporaries and a few pages.
        """
        if self._num_pages is not None:
            programs = self._compiled_with(self._num_pages, progress)
        else:
            programs = self._compiled_with(self._first_guess(progress), progress)
            budget = programs.budget
            if budget.total > self._room:
                # The first guess left too little for temporaries; now they are known.
                num_pages = self._fitting(self._room - (budget.total - budget.pages))
                programs = self._compiled_with(num_pages, progress)
        if programs.budget.total > self._room:
            raise CapacityError(
                f"{programs.budget}: lower num_pages, max_num_seqs or max_num_batched_tokens"
            )
        return programs

    @exhaustion_is_capacity_error()
    def engine(
        self, programs: Programs, model: Model, tokenizer: Tokenizer | None, *, seed: int = 0
    ) -> Engine:
        """An engine that never compiles again; every program has run once.

        ``model``: what ``lay_out`` made of the model with its weights.

        Raises:
            CapacityError: the device is full.
        """
        programs.table.bind(model)
        eos_token_ids = {
            *model.config.eos_token_ids,
            *(tokenizer.eos_token_ids if tokenizer else ()),
        }
        runner = DeviceRunner(
            programs.table,
            self.limits,
            programs.groups,
            budget=programs.budget,
            eos_token_ids=sorted(eos_token_ids),
            seed=seed,
        )
        runner.warm_up()
        return Engine(runner, tokenizer)

    def _table_with(self, num_pages: int) -> ProgramTable:
        limits, config = self.limits, self._model.config
        shapes = ProgramShapes(
            num_slots=self._num_slots,
            pages_per_sequence=-(-limits.max_model_len // limits.page_size),
            page_size=limits.page_size,
            num_pages=tuple(group.num_pages for group in cache_groups(config, limits, num_pages)),
            kv_dtype=self._kv_dtype,
            prefill_tokens=self._ladder,
            decode_steps=limits.decode_steps,
            decode_rows=self._decode_rows,
            # Samples of one prompt share a partly filled page only while they run side by side.
            copies=16 if limits.max_num_seqs > 1 else 0,
            score_rows=min(64, self._ladder[0]) if self._has_prompt_logprobs else 0,
        )
        return ProgramTable(self._model, shapes)

    def _compiled_with(self, num_pages: int, progress: Progress) -> Programs:
        table = self._table_with(num_pages)
        table.compile(progress)
        budget = MemoryBudget(
            weights=self._model.device_weight_bytes,
            slots=table.slot_bytes(),
            temporaries=table.temporary_bytes(),
            pages=self._pool_bytes(num_pages),
            limit=self._room,
            num_pages=table.shapes.num_pages,
            page_size=self.limits.page_size,
            layout=layout_note(self._model),
        )
        groups = cache_groups(self._model.config, self.limits, num_pages)
        return Programs(table=table, groups=groups, budget=budget)

    def _first_guess(self, progress: Progress) -> int:
        """Pages of the first group for the memory that weights and temporaries leave."""
        room = self._room - self._model.device_weight_bytes
        if platform_of(self._model.mesh) == "cpu":
            # Compiling twice at every start would cost a newcomer seconds; half of what is left is
            # far more than the temporaries take, and the budget is checked once they are known.
            return self._fitting(min(CPU_POOL_BYTES, room // 2))
        # No program's temporaries grow with the pool, so the smallest one tells them.
        probe = self._table_with(2)
        probe.compile(lambda done, total: progress(0, total), only=probe.largest)
        return self._fitting(room - probe.temporary_bytes() - probe.slot_bytes())

    def _fitting(self, room: int) -> int:
        return fitting_pages(self._model.config, self.limits, self._page_bytes, room)

    def _pool_bytes(self, num_pages: int) -> int:
        return pool_bytes(self._model.config, self.limits, num_pages, self._page_bytes)


def build_engine(
    model: Model, tokenizer: Tokenizer | None, *, seed: int = 0, **settings: Any
) -> Engine:
    """An engine of a model that is there, which stays as it is. ``settings``: of ``EngineBuilder``.

    Raises:
        InvalidParameter, CapacityError: as ``EngineBuilder`` and its ``compile``.
    """
    builder = EngineBuilder(model.shapes, **settings)
    return builder.engine(builder.compile(), builder.lay_out(model), tokenizer, seed=seed)


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
