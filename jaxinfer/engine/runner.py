"""The one owner of device state: turns a printable plan into compiled calls, and back.

``launch`` and ``sample`` never wait for the device: what a step returns are futures, and the next
step takes them as they are. Everything it calls was compiled before the engine was ready.
"""

import contextlib
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from jaxinfer.batch import pack_prefill
from jaxinfer.cache import Cache
from jaxinfer.decoding.autoregressive import SlotLogits, StepOutput
from jaxinfer.decoding.programs import ProgramTable
from jaxinfer.decoding.slots import SlotState
from jaxinfer.engine.limits import CacheGroup, EngineLimits
from jaxinfer.engine.memory import MemoryBudget
from jaxinfer.engine.step import Admission, PageCopy, PromptLogprobs, StepPlan, StepResult
from jaxinfer.errors import StepFailed, Unsupported
from jaxinfer.models.model import Model
from jaxinfer.sampling import Scores, SlotSampling, slot_sampling
from jaxinfer.sampling_params import SamplingParams


@dataclass(frozen=True, kw_only=True)
class SlotRequest:
    """What one sample asks of its slot. The slot's arrays, as wide as the vocabulary, are made on
    admission: a long queue must not hold them.
    """

    params: SamplingParams
    index: int
    max_tokens: int
    default_seed: int
    banned_token_ids: Collection[int]


@dataclass(frozen=True)
class ScoredRow:
    """A prompt row whose log-probabilities were asked for: ``count`` targets, in parts."""

    slot: int
    count: int
    parts: list[Scores]


@dataclass
class Pending:
    """A launched step: arrays that the device is still making.

    ``logits`` until it is sampled, ``output`` from then on.
    """

    wants_logprobs: bool
    logits: SlotLogits | None = None
    output: StepOutput | None = None
    scored: Sequence[ScoredRow] = ()


class DeviceRunner:
    """Holds parameters, cache, slot state and page tables; see ``engine.step.Runner``."""

    def __init__(
        self,
        table: ProgramTable,
        limits: EngineLimits,
        groups: tuple[CacheGroup, ...],
        *,
        budget: MemoryBudget,
        eos_token_ids: Sequence[int] = (),
        seed: int = 0,
    ):
        self.limits, self.groups, self.budget = limits, groups, budget
        self._programs, self._params = table, table.model.params
        self.eos_token_ids = tuple(eos_token_ids)
        self._seeds = random.Random(seed)
        self._anything_SW = table.replicate(table.unrestricted())
        self._cache: Cache | None = None
        self._slots: SlotState | None = None
        self.reset()

    def reset(self) -> None:
        """An empty cache, empty slots, empty page tables."""
        shapes = self._programs.shapes
        # The old ones are let go first, when no step holds them any more: two have no room.
        with contextlib.suppress(Exception):  # those of a step that failed have failed, too
            jax.block_until_ready((self._cache, self._slots))
        self._cache = self._slots = None
        self._cache = self._programs.empty_cache()
        self._slots = self._programs.empty_slots()
        self._logprob_slots: set[int] = set()
        table = (len(self.groups), shapes.num_slots, shapes.pages_per_sequence)
        self._tables_GSM = np.zeros(table, np.int32)
        self._upload_tables()

    @property
    def model(self) -> Model:
        """Whose weights it runs with; those of a blank one after ``release``."""
        return self._programs.model

    def exchange(self, model: Model) -> None:
        """Other weights of the same shapes; nothing is in flight."""
        self._programs.bind(model)
        self._params = model.params

    def release(self) -> None:
        """Lets go of everything on the device, until ``take_up``; nothing is in flight."""
        self._cache = self._slots = None
        self._device_tables = ()
        self.exchange(self.model.shapes)

    def take_up(self, model: Model) -> None:
        """Weights of the same shapes, and an empty cache."""
        self.exchange(model)
        self.reset()

    def warm_up(self) -> None:
        """Runs every program once, on idle rows, which leaves the cache as it is."""
        nothing = np.zeros(0, np.int32)
        sampling = self.slot_sampling(SamplingParams(logprobs=0), index=0, max_tokens=1)
        self._admit(
            Admission(slot=0, generation=0, sampling=sampling, prompt=nothing, generated=nothing)
        )
        if self._programs.shapes.copies:
            self._copy([PageCopy(group=0, source=0, target=0)])
        for name in self._programs.step_names:
            rows = self._programs.idle_rows(name)
            pending, hidden_TD = self._start(name, rows, wants_logprobs=True)
            if hidden_TD is not None and self._programs.shapes.score_rows:
                list(self._score_chunk(hidden_TD, 0, np.zeros(1, np.int32)))
            self.sample(pending, {})
            self.read(pending)
        self._slots = self._programs.empty_slots()

    def slot_sampling(
        self,
        params: SamplingParams,
        *,
        index: int,
        max_tokens: int,
        banned_token_ids: Collection[int] = (),
    ) -> SlotRequest:
        """Checks sample ``index`` of a request; without a seed of its own it draws one here."""
        if params.prompt_logprobs is not None and not self._programs.shapes.score_rows:
            raise Unsupported(
                "prompt_logprobs: this engine was built without them; build it with"
                " prompt_logprobs=True"
            )
        request = SlotRequest(
            params=params,
            index=index,
            max_tokens=max_tokens,
            default_seed=self._seeds.getrandbits(63),
            banned_token_ids=banned_token_ids,
        )
        self._slot_row(request)  # raises what admission would raise too late
        return request

    def _slot_row(self, request: SlotRequest) -> SlotSampling:
        return slot_sampling(
            request.params,
            sample_index=request.index,
            vocab_size=self.limits.vocab_size,
            eos_token_ids=self.eos_token_ids,
            max_tokens=request.max_tokens,
            default_seed=request.default_seed,
            banned_token_ids=request.banned_token_ids,
        )

    def launch(self, plan: StepPlan) -> Pending:
        """Starts the model's part of a step and returns at once."""
        try:
            for admission in plan.admissions:
                self._admit(admission)
            self._copy(plan.copies)
            self._update_tables(plan)
            return self._launch_rows(plan)
        except jax.errors.JaxRuntimeError as error:
            raise StepFailed(f"a step of {len(plan.rows)} rows could not start: {error}") from error

    def sample(self, pending: Pending, allowed: Mapping[int, np.ndarray]) -> None:
        """Starts the rest of it and returns at once."""
        try:
            if pending.logits is not None:
                assert self._slots is not None
                self._slots, pending.output = self._programs.sample(
                    self._slots, pending.logits, self._mask(allowed)
                )
                pending.logits = None
            output = pending.output
            assert output is not None
            for leaf in jax.tree.leaves(output) if pending.wants_logprobs else [output.events_J3S]:
                leaf.copy_to_host_async()
        except jax.errors.JaxRuntimeError as error:
            raise StepFailed(f"a step could not be sampled: {error}") from error

    def read(self, pending: Pending) -> StepResult:
        """Waits for a step."""
        output = pending.output
        assert output is not None, "read before it was sampled"
        try:
            events_J3S = np.asarray(output.events_J3S)
            logprobs = _logprobs(output) if pending.wants_logprobs else {}
            scored = {row.slot: _joined(row) for row in pending.scored}
        except jax.errors.JaxRuntimeError as error:
            raise StepFailed(f"the device failed during a step: {error}") from error
        return StepResult(
            tokens_JS=events_J3S[:, 0],
            emitted_JS=events_J3S[:, 1].astype(bool),
            finish_JS=events_J3S[:, 2],
            prompt_logprobs=scored,
            **logprobs,
        )

    def _launch_rows(self, plan: StepPlan) -> Pending:
        if plan.is_decode_only:
            name, rows = self._programs.packed_decode(plan.rows, plan.num_steps)
        else:
            num_slots = self._programs.shapes.num_slots
            size = self._programs.prefill_size(plan.num_tokens)
            name, rows = f"prefill/{size}", pack_prefill(plan.rows, size, num_slots)
        wants_logprobs = any(row.slot in self._logprob_slots for row in plan.rows)
        pending, hidden_TD = self._start(name, rows, wants_logprobs=wants_logprobs)
        if hidden_TD is not None:
            pending.scored = tuple(self._score(plan, hidden_TD))
        return pending

    def _mask(self, allowed: Mapping[int, np.ndarray]) -> jax.Array:
        """The tokens each slot may take in this step, as packed bits."""
        if not allowed:
            return self._anything_SW
        mask_SW = self._programs.unrestricted()
        for slot, allowed_W in allowed.items():
            mask_SW[slot] &= allowed_W
        return self._programs.replicate(mask_SW)

    def _start(
        self, name: str, rows: np.ndarray, *, wants_logprobs: bool
    ) -> tuple[Pending, jax.Array | None]:
        """Calls a decode or prefill program; prefill returns hidden states too."""
        assert self._cache is not None
        assert self._slots is not None
        programs, pending = self._programs, Pending(wants_logprobs)
        arguments = (name, self._cache, self._slots, self._device_tables, programs.replicate(rows))
        if programs.samples_apart(name):
            self._cache, pending.logits, hidden_TD = programs.forward(*arguments)
        else:
            self._cache, self._slots, pending.output, hidden_TD = programs.step(
                *arguments, self._anything_SW
            )
        return pending, hidden_TD

    def _admit(self, admission: Admission) -> None:
        request = admission.sampling
        assert isinstance(request, SlotRequest)
        row = self._slot_row(request).with_tokens(admission.prompt, admission.generated)
        slot = np.asarray(admission.slot, np.int32)
        self._slots = self._programs["admit"](self._slots, *self._programs.replicate((slot, row)))
        if request.params.logprobs is not None:
            self._logprob_slots.add(admission.slot)
        else:
            self._logprob_slots.discard(admission.slot)

    def _copy(self, copies: Sequence[PageCopy]) -> None:
        """Copy-on-write, a fixed number of pages a call; a pair of zeros copies nothing."""
        if not copies:
            return
        at_once = self._programs.shapes.copies
        for start in range(0, len(copies), at_once):
            pairs = np.zeros((2, len(self.groups), at_once), np.int32)
            for column, copy in enumerate(copies[start : start + at_once]):
                pairs[:, copy.group, column] = copy.source, copy.target
            source, target = self._programs.replicate((pairs[0], pairs[1]))
            self._cache = self._programs["copy"](self._cache, source, target)

    def _update_tables(self, plan: StepPlan) -> None:
        if not plan.admissions and not plan.page_updates:
            return
        for admission in plan.admissions:
            self._tables_GSM[:, admission.slot] = 0
        for update in plan.page_updates:
            self._tables_GSM[update.group, update.slot, update.column] = update.page
        self._upload_tables()

    def _upload_tables(self) -> None:
        # Copied, because the device may read the host's memory later, in place.
        self._device_tables = self._programs.replicate(
            tuple(table_SM.copy() for table_SM in self._tables_GSM)
        )

    def _score(self, plan: StepPlan, hidden_TD: jax.Array) -> Iterator[ScoredRow]:
        """Log-probabilities of the prompt tokens that rows ask for."""
        begin = 0
        for row in plan.rows:
            if row.targets is not None and len(row.targets):
                parts = list(self._score_chunk(hidden_TD, begin, row.targets))
                yield ScoredRow(row.slot, len(row.targets), parts)
            begin += row.num_tokens

    def _score_chunk(
        self, hidden_TD: jax.Array, begin: int, targets_C: np.ndarray
    ) -> Iterator[Scores]:
        """Scores of ``targets_C`` after tokens ``begin``, ``begin + 1`` ..., some rows a call."""
        at_once = self._programs.shapes.score_rows
        score = self._programs[f"score/{hidden_TD.shape[0]}"]
        for start in range(0, len(targets_C), at_once):
            chosen = targets_C[start : start + at_once]
            index_R, target_R = np.zeros((2, at_once), np.int32)
            index_R[: len(chosen)] = begin + start + np.arange(len(chosen))
            target_R[: len(chosen)] = chosen
            yield score(self._params, hidden_TD, *self._programs.replicate((index_R, target_R)))


def _logprobs(output: StepOutput) -> dict[str, np.ndarray]:
    return {
        "logprob_JS": np.asarray(output.logprob_JS),
        "rank_JS": np.asarray(output.rank_JS),
        "top_ids_JSA": np.asarray(output.top_ids_JSA),
        "top_logprobs_JSA": np.asarray(output.top_logprobs_JSA),
    }


def _joined(row: ScoredRow) -> PromptLogprobs:
    def all_of(field: str) -> np.ndarray:
        parts = [np.asarray(getattr(part, field)) for part in row.parts]
        return np.concatenate(parts)[: row.count]

    return PromptLogprobs(
        logprob_C=all_of("logprob_R"),
        rank_C=all_of("rank_R"),
        top_ids_CA=all_of("top_ids_RA"),
        top_logprobs_CA=all_of("top_logprobs_RA"),
    )
