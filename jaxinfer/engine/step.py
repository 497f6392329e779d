"""What the scheduler tells the device to do in a step, and what comes back: printable data.

The life of a step: ``scheduler.plan() -> StepPlan -> runner.launch() -> runner.sample() ->
runner.read() -> StepResult -> scheduler.commit()``. Step k+1 is launched before step k is read, so
a plan never names a token that the device has not reported yet: a decode row takes its token from
the slot's state on the device. Where the choice of the next token depends on that one,
``runner.sample`` comes after the ``commit`` of step k: meanwhile the device runs the model.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol

import numpy as np

from jaxinfer.engine.limits import CacheGroup, EngineLimits
from jaxinfer.engine.slots import Slot
from jaxinfer.sampling_params import SamplingParams


class Finish(IntEnum):
    """Why a slot stopped, decided on the device."""

    NOT = 0
    STOP = 1
    LENGTH = 2


@dataclass(frozen=True, kw_only=True)
class Row:
    """One sequence's part of a step.

    ``start``: tokens already in the cache, so the position of this row's first token. ``tokens``:
    the known tokens of this chunk (int32), or None for a decode row, whose single token lives in
    the slot. ``samples``: the row's last token is sampled from (always in decode, and in a prompt's
    last chunk). ``targets``: None, or the wish for prompt log-probabilities: the prompt tokens
    after each of ``tokens`` (int32), one fewer in the last chunk, whose last token is followed by
    what is sampled.
    """

    slot: int
    generation: int
    start: int
    tokens: np.ndarray | None = None
    samples: bool = True
    targets: np.ndarray | None = None

    @property
    def is_decode(self) -> bool:
        return self.tokens is None

    @property
    def num_tokens(self) -> int:
        return 1 if self.tokens is None else len(self.tokens)

    @property
    def zone(self) -> int:
        """0 for decode rows, 1 for rows with nothing cached, 2 for the rest."""
        if self.tokens is None:
            return 0
        return 1 if self.start == 0 else 2


@dataclass(frozen=True, kw_only=True)
class PageUpdate:
    """Column ``column`` of a slot's page table in one layer group becomes ``page`` (0: none)."""

    group: int
    slot: int
    column: int
    page: int


@dataclass(frozen=True, kw_only=True)
class PageCopy:
    """Copy-on-write in one layer group: page ``source`` is copied to page ``target``."""

    group: int
    source: int
    target: int


@dataclass(frozen=True, kw_only=True)
class Admission:
    """The state a slot starts with: ``sampling`` is what ``Runner.slot_sampling`` made.

    ``prompt``: the prompt's tokens. ``generated``: tokens sampled in an earlier stay (after
    preemption); penalties count them as output, and ``min_tokens`` and ``max_tokens`` include them.
    Both int32. The rows that follow compute prompt and generated tokens alike, but for those that
    pages already hold.
    """

    slot: int
    generation: int
    sampling: object
    prompt: np.ndarray
    generated: np.ndarray


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """One step. The device does ``admissions``, ``copies``, ``page_updates``, then the rows.

    ``admissions``: slots whose sequence is new there (or there again after preemption) with the
    state to upload. An admitted slot's page table is cleared first, so ``page_updates`` names every
    page it has; no entry of a table is named twice. Rows are ordered by ``zone``, and a slot
    without a row is idle in this step. ``num_steps`` above 1 only when every row decodes; the pages
    for all of them are in the tables already.
    """

    rows: tuple[Row, ...]
    num_steps: int = 1
    admissions: tuple[Admission, ...] = ()
    copies: tuple[PageCopy, ...] = ()
    page_updates: tuple[PageUpdate, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(row.num_tokens for row in self.rows)

    @property
    def is_decode_only(self) -> bool:
        return all(row.is_decode for row in self.rows)


class PlanDraft:
    """A plan being written.

    ``pages``: entries of page tables by (group, slot, column). A plan without rows is never sent,
    so what was written here goes on into the next draft.
    """

    def __init__(self, num_steps: int, pages: dict[tuple[int, int, int], int]):
        self.num_steps = num_steps
        self.pages = pages
        self.rows: list[Row] = []
        self.admissions: list[Admission] = []
        self.copies: list[PageCopy] = []

    def set_page(self, group: int, slot: int, column: int, page: int) -> None:
        """One entry of a page table; what is said last counts."""
        self.pages[group, slot, column] = page

    def has_prompt_row(self, slot: Slot | None) -> bool:
        """Prompt tokens of this slot are computed in this step: nobody can read them before."""
        return slot is not None and any(
            row.slot == slot.index and not row.is_decode for row in self.rows
        )

    def finished(self) -> StepPlan | None:
        """The plan, or None when it has no rows and so nothing to do."""
        if not self.rows:
            return None
        updates = (
            PageUpdate(group=group, slot=slot, column=column, page=page)
            for (group, slot, column), page in self.pages.items()
        )
        return StepPlan(
            rows=tuple(sorted(self.rows, key=lambda row: row.zone)),
            num_steps=self.num_steps,
            admissions=tuple(self.admissions),
            copies=tuple(self.copies),
            page_updates=tuple(updates),
        )


@dataclass(frozen=True, kw_only=True)
class PromptLogprobs:
    """Log-probabilities of a row's ``targets`` (C of them), from the raw logits before each.

    ``rank_C``: 1 for the most likely token. The A most likely tokens stand in descending order.
    """

    logprob_C: np.ndarray
    rank_C: np.ndarray
    top_ids_CA: np.ndarray
    top_logprobs_CA: np.ndarray


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step sampled, by slot; ``J`` micro-steps, ``S`` slots, ``A`` alternatives.

    ``emitted_JS``: a token was sampled for this slot in that micro-step; a slot whose sequence has
    ended emits no more. ``finish_JS``: a ``Finish`` code, set in the micro-step that ended the
    sequence. The log-probability arrays are of the raw logits; None when no slot of the step asked
    for them. ``prompt_logprobs``: by slot, for each row that has any ``targets``.
    """

    tokens_JS: np.ndarray
    emitted_JS: np.ndarray
    finish_JS: np.ndarray
    logprob_JS: np.ndarray | None = None
    rank_JS: np.ndarray | None = None
    top_ids_JSA: np.ndarray | None = None
    top_logprobs_JSA: np.ndarray | None = None
    prompt_logprobs: Mapping[int, PromptLogprobs] = field(default_factory=dict)


class Runner(Protocol):
    """The one owner of device state, as the engine sees it."""

    @property
    def groups(self) -> tuple[CacheGroup, ...]: ...

    @property
    def limits(self) -> EngineLimits: ...

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The model's own, which end a sequence unless its request ignores them."""
        ...

    def slot_sampling(
        self,
        params: SamplingParams,
        *,
        index: int,
        max_tokens: int,
        banned_token_ids: Collection[int] = (),
    ) -> object:
        """What sample ``index`` of a request uploads to its slot.

        Called on submission, in the caller's thread, without touching the device. ``max_tokens`` is
        clipped to what the context holds. ``banned_token_ids``: never sampled, the bad words of a
        single token; those of several come with ``sample``.

        Raises:
            InvalidParameter: a value that this model cannot serve, or no token may be sampled.
        """
        ...

    def launch(self, plan: StepPlan) -> Any:
        """Starts the model's part of a step, and returns at once with something to ``sample``.

        Raises:
            StepFailed: the step could not start; the cache may be gone.
        """
        ...

    def sample(self, pending: Any, allowed: Mapping[int, np.ndarray]) -> None:
        """Starts the rest of a launched step, and returns at once. Before the next ``launch``.

        ``allowed``: by slot, packed bits (``jaxinfer.bits``) of the ids that may come next, beside
        the slot's own limits; a set of which those leave nothing is not looked at. Empty for a plan
        of several steps.

        Raises:
            StepFailed: as ``launch``.
        """
        ...

    def read(self, pending: Any) -> StepResult:
        """Waits for a sampled step. Steps are read in the order of their launch.

        Raises:
            StepFailed: the device failed; the cache is gone.
        """
        ...

    def reset(self) -> None:
        """After ``StepFailed``: an empty cache and empty slots; what was launched is forgotten."""
        ...
