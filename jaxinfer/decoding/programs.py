"""Every program a server will ever run, compiled ahead of time.

The table follows from the shapes alone: decode in each number of micro-steps and of rows, prefill
in each number of tokens, and the small ones beside them. After ``compile`` nothing compiles again:
a step that fits no program raises before anything is donated.
"""

import functools
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jax.stages import Compiled, Lowered

from jaxinfer.batch import RowLike, pack_decode, pack_few, pack_prefill, prefill_buffer_size
from jaxinfer.bits import all_ids, num_words
from jaxinfer.cache import Cache, copy_pages, init_cache, layer_groups, page_shardings
from jaxinfer.checkpoint.load import Progress, no_progress
from jaxinfer.decoding.autoregressive import (
    SlotLogits,
    StepOutput,
    decode,
    decode_few,
    decode_steps,
    prefill,
    sample_slots,
    score_rows,
)
from jaxinfer.decoding.slots import SlotState, admit_slot, init_slots
from jaxinfer.models.model import Model
from jaxinfer.ops.blocked import COMPILER_OPTIONS
from jaxinfer.sampling import blank_slot_sampling
from jaxinfer.shapes import Shape, Tree, next_in
from sharding import platform_of

#: With few slots somebody waits for the start. The model's programs compile a quarter faster so,
#: and run as fast; ``sample`` would compile more slowly.
_QUICK_START = {"xla_cpu_opt_preset": "CPU_OPT_PRESET_FAST_COMPILE"}

_UNKNOWN_OPTION = ("No such compile option", "not a valid enum value")
_PROGRESS_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class ProgramShapes:
    """All that decides which programs there are.

    ``num_slots`` S; ``pages_per_sequence`` M; ``num_pages`` one a layer group; ``prefill_tokens``,
    ``decode_steps`` and ``decode_rows`` ascending ladders, the last of rows below S, for single
    decode steps in which few slots have one; ``copies`` pages copied in one call, 0 for a table
    that copies none; ``score_rows`` prompt positions scored in one call, 0 for a table that scores
    none.
    """

    num_slots: int
    pages_per_sequence: int
    page_size: int
    num_pages: tuple[int, ...]
    kv_dtype: str
    prefill_tokens: tuple[int, ...]
    decode_steps: tuple[int, ...] = (1,)
    decode_rows: tuple[int, ...] = ()
    copies: int = 16
    score_rows: int = 0


class ProgramTable:
    """The compiled programs of one model in one set of shapes, by name.

    ``decode/1``, ``decode/1/8`` (of at most 8 rows), ``prefill/512``, ``sample``, ``score/512``,
    ``admit``, ``copy``. ``step`` runs those that make a step; ``forward`` and ``sample`` are its
    two halves.

    Compiling needs only the shapes of parameters: a blank model will do, until ``bind``.
    """

    def __init__(self, model: Model, shapes: ProgramShapes):
        self.model, self.shapes = model, shapes
        self._compiled: dict[str, Compiled] = {}

    def bind(self, model: Model) -> None:
        """Gives the programs of a blank model the weights that they will run with."""
        self.model = model

    def compile(
        self,
        progress: Progress = no_progress,
        *,
        only: Collection[str] | None = None,
        threads: int = 2,
    ) -> None:
        """Lowers and compiles every program, or ``only`` those, XLA's part in parallel.

        ``progress`` is called several times a second, and may raise to stop it: no other program is
        begun, and those under way end unheeded.
        """
        lowerings = self._lowerings()
        if only is not None:
            lowerings = {name: lowerings[name] for name in only}
        total = len(lowerings)
        futures: dict[str, Future[Compiled]] = {}
        pool = ThreadPoolExecutor(threads)
        try:
            for name, lower in lowerings.items():
                with jax.set_mesh(self.model.mesh):  # names the chip, for kernels to choose by
                    lowered = lower()
                progress(0, total)
                attempts = _compiler_options(name, self.model)
                futures[name] = pool.submit(_compile, lowered, attempts)
            for done, (name, future) in enumerate(futures.items()):
                while not wait((future,), timeout=_PROGRESS_SECONDS).done:
                    progress(done, total)
                self._compiled[name] = future.result()
                progress(done + 1, total)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def __getitem__(self, name: str) -> Compiled:
        return self._compiled[name]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._compiled)

    @property
    def largest(self) -> tuple[str, ...]:
        """The programs of which one needs the most temporary memory."""
        shapes = self.shapes
        most = shapes.prefill_tokens[-1]
        names = [f"prefill/{most}", f"decode/{shapes.decode_steps[-1]}", "sample"]
        names += [f"decode/1/{num_rows}" for num_rows in shapes.decode_rows[-1:]]
        if shapes.score_rows:
            names.append(f"score/{most}")
        if shapes.copies:
            names.append("copy")
        return tuple(names)

    def slot_bytes(self) -> int:
        """Bytes of the slot state."""
        _, _, slots = self._arguments
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(slots))

    def prefill_size(self, num_tokens: int) -> int:
        """The smallest prefill program for so many tokens."""
        return next_in(num_tokens, self.shapes.prefill_tokens)

    def packed_decode(self, rows: Sequence[RowLike], num_steps: int) -> tuple[str, np.ndarray]:
        """The smallest decode program for these rows, and what it takes."""
        num_slots = self.shapes.num_slots
        if num_steps == 1:
            for num_rows in self.shapes.decode_rows:
                if len(rows) <= num_rows:
                    return f"decode/1/{num_rows}", pack_few(rows, num_rows, num_slots)
        return f"decode/{num_steps}", pack_decode(rows, num_slots)

    def idle_rows(self, name: str) -> np.ndarray:
        """What the program ``name``, one of ``step_names``, takes for no rows at all."""
        num_slots = self.shapes.num_slots
        kind, size, *few = name.split("/")
        if kind == "prefill":
            return pack_prefill((), int(size), num_slots)
        return pack_few((), int(few[0]), num_slots) if few else pack_decode((), num_slots)

    def empty_cache(self) -> Cache:
        """New pools."""
        return self["empty/cache"]()

    def empty_slots(self) -> SlotState:
        """New slot state, all slots empty."""
        return self["empty/slots"]()

    def unrestricted(self) -> np.ndarray:
        """The mask ``[S, W]`` of a step in which every token is allowed."""
        return np.tile(all_ids(self.model.config.vocab_size), (self.shapes.num_slots, 1))

    def replicate(self, tree: Tree) -> Tree:
        """Host arrays on every device of the mesh."""
        return jax.device_put(tree, self._whole)

    def step(
        self,
        name: str,
        cache: Cache,
        slots: SlotState,
        page_tables: tuple[jax.Array, ...],
        rows: jax.Array,
        mask_SW: jax.Array,
    ) -> tuple[Cache, SlotState, StepOutput, jax.Array | None]:
        """Launches a whole step; ``cache`` and ``slots`` are donated.

        ``name``: one of ``step_names``. ``rows``: what ``batch.pack_*`` made. ``mask_SW``: packed
        bits of the tokens allowed in this step. The last value: final hidden states ``[T, D]`` of a
        prefill.
        """
        if not self.samples_apart(name):
            arguments = (self.model.params, cache, slots, page_tables, rows)
            return *self[name](*arguments, mask_SW), None
        cache, logits, hidden_TD = self.forward(name, cache, slots, page_tables, rows)
        slots, output = self.sample(slots, logits, mask_SW)
        return cache, slots, output, hidden_TD

    def forward(
        self,
        name: str,
        cache: Cache,
        slots: SlotState,
        page_tables: tuple[jax.Array, ...],
        rows: jax.Array,
    ) -> tuple[Cache, SlotLogits, jax.Array | None]:
        """Launches the model's part of a step that ``samples_apart``; only ``cache`` is donated.

        The last value: see ``step``.
        """
        cache, logits, *hidden = self[name](self.model.params, cache, slots, page_tables, rows)
        return cache, logits, hidden[0] if hidden else None

    def sample(
        self, slots: SlotState, logits: SlotLogits, mask_SW: jax.Array
    ) -> tuple[SlotState, StepOutput]:
        """Launches the rest of it; ``slots`` is donated. Comes before the next ``forward``."""
        return self["sample"](slots, logits, mask_SW)

    @staticmethod
    def samples_apart(name: str) -> bool:
        """Whether a step's program leaves sampling to ``sample``: all but several decode steps."""
        return name == "decode/1" or name.startswith(("decode/1/", "prefill/"))

    @property
    def step_names(self) -> tuple[str, ...]:
        """The programs that run the model."""
        return tuple(n for n in self._compiled if n.startswith(("decode/", "prefill/")))

    def temporary_bytes(self) -> int:
        """The most memory that any of the programs needs beside its arguments.

        Temporaries by the compiler's own analysis, and logits of one step on their way to sampling.
        """
        analyses = (program.memory_analysis() for program in self._compiled.values())
        temporaries = max((a.temp_size_in_bytes for a in analyses if a is not None), default=0)
        return temporaries + 4 * self.shapes.num_slots * self.model.config.vocab_size

    def _lowerings(self) -> dict[str, Callable[[], Lowered]]:
        """How to lower each program, by name; those that take long to compile come first."""
        model, shapes = self.model, self.shapes
        params, cache, state = self._arguments
        groups = layer_groups(model.config)
        tables = tuple(self._ints(shapes.num_slots, shapes.pages_per_sequence) for _ in groups)
        mask = self._array((shapes.num_slots, num_words(model.config.vocab_size)), jnp.uint32)
        lowerings: dict[str, Callable[[], Lowered]] = {}

        def add(
            name: str, function: Callable, results: Tree, donated: tuple[int, ...], *args: Any
        ) -> None:
            jitted = jax.jit(function, donate_argnums=donated, out_shardings=results)
            lowerings[name] = lambda: jitted.lower(*args)

        where_cache, where_state = _shardings(cache), _shardings(state)
        whole = self._whole
        step = (params, cache, state, tables)
        rows = self._ints(shapes.num_slots)
        for steps in shapes.decode_steps:
            if steps == 1:
                add("decode/1", self._decode, (where_cache, whole), (1,), *step, rows)
                for few in shapes.decode_rows:
                    name, slots = f"decode/1/{few}", self._ints(few)
                    add(name, self._decode_few, (where_cache, whole), (1,), *step, slots)
            else:
                after = (where_cache, where_state, whole)
                name, several = f"decode/{steps}", self._decode_steps(steps)
                add(name, several, after, (1, 2), *step, rows, mask)
        for num_tokens in shapes.prefill_tokens:
            packed = self._ints(prefill_buffer_size(num_tokens, shapes.num_slots))
            results = (where_cache, whole, whole)
            add(f"prefill/{num_tokens}", self._prefill, results, (1,), *step, packed)
            if shapes.score_rows:
                hidden = self._array((num_tokens, model.config.width), model.dtype)
                pairs = (self._ints(shapes.score_rows),) * 2
                add(f"score/{num_tokens}", self._score, whole, (), params, hidden, *pairs)
        sample = functools.partial(sample_slots, has_loops=self._has_loops)
        add("sample", sample, (where_state, whole), (0,), state, self._slot_logits, mask)
        row = jax.tree.map(
            lambda leaf: self._array(leaf.shape, leaf.dtype),
            blank_slot_sampling(model.config.vocab_size),
        )
        add("admit", admit_slot, where_state, (0,), state, self._ints(), row)
        if shapes.copies:
            pairs = (self._ints(len(groups), shapes.copies),) * 2
            add("copy", self._copy, where_cache, (0,), cache, *pairs)
        add("empty/cache", self._new_cache, where_cache, ())
        add("empty/slots", self._new_slots, where_state, ())
        return lowerings

    def _decode(self, params, cache, state, tables, planned_S):
        return decode(self.model.merge(params), cache, state, tables, planned_S)

    def _decode_few(self, params, cache, state, tables, slots_R):
        return decode_few(self.model.merge(params), cache, state, tables, slots_R)

    def _decode_steps(self, num_steps: int) -> Callable:
        def run(params, cache, state, tables, planned_S, mask_SW):
            decoder = self.model.merge(params)
            return decode_steps(
                decoder,
                cache,
                state,
                tables,
                planned_S,
                mask_SW,
                num_steps=num_steps,
                has_loops=self._has_loops,
            )

        return run

    def _prefill(self, params, cache, state, tables, packed):
        return prefill(self.model.merge(params), cache, state, tables, packed)

    def _score(self, params, hidden_TD, index_R, targets_R):
        return score_rows(self.model.merge(params), hidden_TD, index_R, targets_R)

    def _copy(self, cache: Cache, source_GC: jax.Array, target_GC: jax.Array) -> Cache:
        return copy_pages(self.model.config, cache, source_GC, target_GC)

    def _new_cache(self) -> Cache:
        shapes = self.shapes
        return init_cache(self.model.config, shapes.num_pages, shapes.page_size, shapes.kv_dtype)

    def _new_slots(self) -> SlotState:
        return init_slots(self.shapes.num_slots, self.model.config.vocab_size)

    @property
    def _arguments(self) -> tuple[Tree, Cache, SlotState]:
        """Shapes, dtypes and shardings of parameters, cache and slot state."""
        mesh = self.model.mesh
        with jax.set_mesh(mesh):  # the chip decides how pages lie
            cache = jax.eval_shape(self._new_cache)
        where = page_shardings(self.model.config, mesh)
        return (
            self.model.shapes.params,
            tuple(
                jax.tree.map(functools.partial(_abstract, sharding=sharding), pages)
                for pages, sharding in zip(cache, where, strict=True)
            ),
            jax.tree.map(
                lambda leaf: _abstract(leaf, self._whole), jax.eval_shape(self._new_slots)
            ),
        )

    @property
    def _slot_logits(self) -> SlotLogits:
        """Shapes and dtypes of what goes from the model to sampling."""
        num_slots = self.shapes.num_slots
        flags_S = self._array((num_slots,), jnp.bool_)
        arguments: dict[str, Any] = {
            "logits_SV": self._array((num_slots, self.model.config.vocab_size), jnp.float32),
            "kv_lens_S": self._ints(num_slots),
            "has_row_S": flags_S,
            "samples_S": flags_S,
        }
        return SlotLogits(**arguments)

    @property
    def _has_loops(self) -> bool:
        return platform_of(self.model.mesh) != "gpu"

    @property
    def _whole(self) -> NamedSharding:
        return NamedSharding(self.model.mesh, PartitionSpec())

    def _array(self, shape: Shape, dtype: jax.typing.DTypeLike) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self._whole)

    def _ints(self, *shape: int) -> jax.ShapeDtypeStruct:
        return self._array(shape, jnp.int32)


def _abstract(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _shardings(tree: Tree) -> Tree:
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def _compile(lowered: Lowered, attempts: Sequence[dict[str, Any]]) -> Compiled:
    """Compiles with the first options that this version of XLA knows: they are experimental."""
    *others, last = attempts
    for options in others:
        try:
            return lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            if not any(message in str(error) for message in _UNKNOWN_OPTION):
                raise
    return lowered.compile(compiler_options=last or None)


def _compiler_options(name: str, model: Model) -> tuple[dict[str, Any], ...]:
    """What a program of this layout asks of the compiler, and what it will do with as well.

    Only one for few slots asks anything.
    """
    if not model.is_blocked or name == "sample":
        return ({},)
    return COMPILER_OPTIONS | _QUICK_START, COMPILER_OPTIONS, {}
