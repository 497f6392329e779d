"""Who computes what in the next step: the policy, on slots and pages.

Iteration-level scheduling (Orca, OSDI 2022) with chunked prefill (Sarathi, arXiv 2308.16369):
running sequences decode, and what is left of the token budget goes to prompts, in the order of
rank: priority, then arrival. Pages are given out on demand (arXiv 2309.06180). When there are none
left, the running sequence of the worst rank gives up its own and computes them again later.
"""

from bisect import insort
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass
from operator import attrgetter, gt

from jaxinfer.engine.limits import CacheGroup, EngineLimits
from jaxinfer.engine.sequence import Sequence
from jaxinfer.engine.slots import Slots
from jaxinfer.engine.stats import EngineStats
from jaxinfer.engine.step import Finish, PlanDraft, Row, StepPlan, StepResult
from jaxinfer.engine.tables import PageTables

_RANK = attrgetter("rank")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a step that was read back brought to one sequence, through one row.

    ``token_ids`` may be empty: a chunk in the middle of a prompt.
    """

    sequence: Sequence
    row: Row
    token_ids: list[int]
    finish: Finish


class Scheduler:
    """``plan`` may run before the step before it was committed: it assumes that every slot got its
    tokens. What comes back for a sequence that has left its slot meanwhile is dropped.

    Attributes:
        admits_new: False: no request is begun; those that were, go on.
    """

    def __init__(self, groups: Items[CacheGroup], limits: EngineLimits):
        self.limits = limits
        self.tables = PageTables(groups, limits.page_size)
        self.slots: Slots[Sequence] = Slots(limits.max_num_seqs)
        self.stats = EngineStats()
        self.waiting: list[Sequence] = []  # both by rank, best first
        self.running: list[Sequence] = []
        self.admits_new = True
        self._refused: tuple[Sequence | None, Items[int]] = (None, ())
        self._unsent_pages: dict[tuple[int, int, int], int] = {}

    def add(self, sequence: Sequence) -> None:
        """A sequence joins the queue."""
        insort(self.waiting, sequence, key=_RANK)

    def finish(self, sequence: Sequence) -> None:
        """A sequence has ended, wherever it stands; a second call does nothing."""
        if sequence.is_finished:
            return
        sequence.is_finished = True
        if sequence.slot is None:
            self.waiting.remove(sequence)
        else:
            self._leave(sequence)

    def plan(self, max_steps: int | None = None) -> StepPlan | None:
        """The next step, or None when there is nothing to compute before the next ``commit``.

        ``max_steps``: decode steps that one call may take at most.
        """
        if self.admits_new:
            self._yield_to_priority()
        draft = PlanDraft(self._num_steps(max_steps), self._unsent_pages)
        num_preemptions = self.stats.num_preemptions
        num_decoding = sum(
            sequence.can_decode and not sequence.is_prefilling for sequence in self.running
        )
        budget = self.limits.max_num_batched_tokens - num_decoding

        for sequence in self.running:
            self.tables.trim(sequence, draft)
        for sequence in self._by_rank():  # whom it preempts has no row yet
            if sequence.is_prefilling:
                budget -= self._plan_prompt(sequence, budget, draft)
            elif sequence.can_decode:
                self._plan_decode(sequence, draft)
        if self.stats.num_preemptions == num_preemptions:
            self._admit_waiting(budget, draft)
        return self._sent(draft)

    def commit(self, plan: StepPlan, result: StepResult) -> list[Progress]:
        """Takes in what a step brought; sequences that ended on the device are finished."""
        tokens_SJ = result.tokens_JS.T.tolist()
        emitted_S = result.emitted_JS.sum(axis=0).tolist()
        finish_S = result.finish_JS.max(axis=0).tolist()
        progress = []
        for row in plan.rows:
            sequence = self.slots.owner(row.slot, row.generation)
            if sequence is None:
                self.stats.num_dropped_rows += 1
                continue
            token_ids = tokens_SJ[row.slot][: emitted_S[row.slot]]
            finish = Finish(finish_S[row.slot])
            sequence.commit(row, token_ids)
            self.stats.num_generated_tokens += len(token_ids)
            if self._uses_cache(sequence):
                self.tables.publish(sequence)
            if finish is not Finish.NOT:
                self.finish(sequence)
            elif sequence.failures.is_suspect:
                self._try(sequence)
            progress.append(
                Progress(sequence=sequence, row=row, token_ids=token_ids, finish=finish)
            )
        return progress

    def reset(self, unread: Iterable[StepPlan]) -> Sequence | None:
        """The device lost everything: empties slots and pools. Who was in a slot is in the queue
        again, with the tokens that were read back.

        Args:
            unread: the steps that were launched and not read, one of which has failed.

        Returns:
            whom the device cannot bear, as far as this and earlier failures say; else None.
        """
        present = {self.slots.owner(row.slot, row.generation) for p in unread for row in p.rows}
        for sequence in tuple(self.running):
            self._leave(sequence)
            if sequence in present:
                sequence.failures.note(len(sequence.tokens), is_alone=len(present) == 1)
            self.add(sequence)
        self.tables.clear()
        self._refused = None, ()
        self._unsent_pages = {}
        self.stats.num_failed_steps += 1
        guilty = (s for s in present if s is not None and s.failures.is_guilty)
        return next(guilty, None)

    def acquit_all(self) -> None:
        """After ``reset``: whose fault it was is known."""
        for sequence in self.waiting:
            sequence.failures.clear()
        self.waiting.sort(key=_RANK)

    def plan_alone(self, sequence: Sequence) -> StepPlan:
        """After ``reset``: the first step of a sequence, before anybody else has a slot."""
        assert not self.running
        draft = PlanDraft(1, self._unsent_pages)
        self.add(sequence)
        self._adopt(sequence, siblings=())
        self._admit(sequence, draft)
        self._plan_prompt(sequence, self.limits.max_num_batched_tokens, draft)
        plan = self._sent(draft)
        assert plan is not None
        return plan

    def check(self) -> None:
        """Asserts that no slot and no page is lost, owned twice, or both owned and free."""
        self.slots.check()
        self.tables.check(self.running)
        for sequence in self.running:
            assert sequence.slot is not None
            owner = self.slots.owner(sequence.slot.index, sequence.slot.generation)
            assert owner is sequence
        for sequence in self.waiting:
            assert sequence.slot is None
            assert not any(sequence.pages)
        assert len(self.running) == 1 or not any(s.failures.is_suspect for s in self.running)
        for queue in (self.waiting, self.running):
            assert queue == sorted(queue, key=_RANK)
            assert not any(sequence.is_finished for sequence in queue)

    # Running sequences.

    def _by_rank(self) -> Iterator[Sequence]:
        """The running sequences, best first, but for those that lose their slot meanwhile."""
        for sequence in tuple(self.running):
            if sequence.slot is not None:
                yield sequence

    def _num_steps(self, max_steps: int | None) -> int:
        """How many decode steps to take in one call: one, unless nobody waits for its end."""
        if self.waiting or not self.running:
            return 1
        if any(sequence.is_prefilling or sequence.needs_host for sequence in self.running):
            return 1
        most = max(sequence.num_remaining for sequence in self.running)
        if max_steps is not None:
            most = min(most, max_steps)
        for num_steps in reversed(self.limits.decode_steps[1:]):
            if num_steps <= most and self.tables.can_extend(
                (s, s.num_computed + min(num_steps, s.num_remaining)) for s in self.running
            ):
                return num_steps
        return 1

    def _plan_decode(self, sequence: Sequence, draft: PlanDraft) -> None:
        num_steps = min(draft.num_steps, sequence.num_remaining)
        if self._reserve(sequence, sequence.num_computed + num_steps, draft):
            draft.rows.append(sequence.decode_row(num_steps))

    def _plan_prompt(self, sequence: Sequence, budget: int, draft: PlanDraft) -> int:
        """The next chunk: as much as the budget and the free pages allow. Returns its tokens."""
        start = sequence.num_computed
        if budget <= 0 or not self._reserve(sequence, start + 1, draft):
            return 0
        end = min(start + budget, sequence.prefill_len, self.tables.reach(sequence))
        has_pages = self.tables.extend(sequence, end, draft)
        assert has_pages
        draft.rows.append(sequence.prompt_row(end))
        return end - start

    def _reserve(self, sequence: Sequence, end: int, draft: PlanDraft) -> bool:
        """Pages for tokens up to ``end``, at the cost of sequences of a worse rank.

        A sequence that finds no such victim waits with what it has: it can become one itself.
        """
        while not self.tables.extend(sequence, end, draft):
            # Who is ending gives its pages back when its last step is read; no need to take them.
            victim = next(s for s in reversed(self.running) if not s.is_ending or s is sequence)
            if victim is sequence:
                return False
            self._preempt(victim)
        return True

    def _try(self, suspect: Sequence) -> None:
        """It was alone in a step that did not fail. When that was often enough, the next suspect
        takes its place, or everybody else joins it.
        """
        if not suspect.failures.is_proved_by(len(suspect.tokens)):
            return
        suspect.failures.clear()
        if self.waiting and self.waiting[0].failures.is_suspect:
            self._leave(suspect)
            self.add(suspect)

    def _preempt(self, sequence: Sequence) -> None:
        """Back into the queue; what it has in flight is dropped, and computed again."""
        self._leave(sequence)
        self.add(sequence)
        self.stats.num_preemptions += 1

    def _leave(self, sequence: Sequence) -> None:
        assert sequence.slot is not None
        self.running.remove(sequence)
        self.slots.release(sequence.slot)
        self.tables.release(sequence)
        sequence.leave()

    # Waiting sequences.

    def _yield_to_priority(self) -> None:
        """Who waits takes the place of running sequences of a lower priority."""
        while self.waiting and self.running:
            first, last = self.waiting[0], self.running[-1]
            if not self._may_join(first):
                return
            if last.priority >= first.priority or self._has_room(first):
                return
            self._preempt(last)

    def _has_room(self, sequence: Sequence) -> bool:
        if not self.slots.num_free:
            return False
        self._adopt(sequence, siblings=())
        fits = self._fits(sequence)
        self._give_up(sequence)
        return fits

    def _admit_waiting(self, budget: int, draft: PlanDraft) -> None:
        if not self.slots.num_free:
            return
        for sequence in tuple(self.waiting):
            if budget <= 0 or not self.slots.num_free:
                return
            if not self._may_join(sequence):
                return
            if not (self.admits_new or sequence.family.is_begun):
                continue
            siblings = [s for s in self.running if s.family is sequence.family]
            if any(s.is_prefilling or draft.has_prompt_row(s.slot) for s in siblings):
                continue  # the prompt that they share is being computed
            if self._was_refused(sequence):
                return
            is_fork = self._adopt(sequence, siblings)
            if not self._fits(sequence):
                self._give_up(sequence)
                self._refused = sequence, self.tables.num_free
                return
            self._count_admission(sequence, is_fork=is_fork)
            self._admit(sequence, draft)
            budget -= self._plan_prompt(sequence, budget, draft)

    def _may_join(self, sequence: Sequence) -> bool:
        """Beside those in slots: a suspect neither joins others, nor they it."""
        return not self.running or not (
            sequence.failures.is_suspect or self.running[0].failures.is_suspect
        )

    def _was_refused(self, sequence: Sequence) -> bool:
        """It did not fit the last time, and no pages were given back since; saves a long look."""
        refused, num_free = self._refused
        return refused is sequence and not any(map(gt, self.tables.num_free, num_free))

    def _adopt(self, sequence: Sequence, siblings: Items[Sequence]) -> bool:
        """Takes over pages that hold its first tokens; True: from a sibling, else cached ones.

        A sibling has the whole prompt. The last token is always computed again, for something to
        sample from.
        """
        if sequence.scores_prompt:
            return False
        num_shared = min(sequence.prompt_len, sequence.prefill_len - 1)
        cached = self.tables.cached_pages(sequence) if self._uses_cache(sequence) else ()
        if num_shared > self.tables.num_tokens(cached):
            for source in siblings:
                if self.tables.can_fork(source, num_shared):
                    self.tables.fork(source, sequence, num_shared)
                    return True
        self.tables.attach(sequence, cached)
        return False

    def _give_up(self, sequence: Sequence) -> None:
        self.tables.release(sequence)
        sequence.leave()

    def _fits(self, sequence: Sequence) -> bool:
        """Room for this prompt beside the rest of those that are being computed."""
        under_way = [s for s in self.running if s.is_prefilling]
        return self.tables.can_prefill([*under_way, sequence])

    def _admit(self, sequence: Sequence, draft: PlanDraft) -> None:
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=_RANK)
        draft.admissions.append(sequence.enter(self.slots.acquire(sequence)))
        self.tables.show(sequence, draft)

    def _uses_cache(self, sequence: Sequence) -> bool:
        request = sequence.family.request
        return self.limits.enable_prefix_caching and not request.bypass_prefix_cache

    # Counting.

    def _count_admission(self, sequence: Sequence, *, is_fork: bool) -> None:
        if is_fork:
            self.stats.num_forks += 1
        elif self._uses_cache(sequence):
            self.stats.prefix_query_tokens += sequence.prefill_len
            self.stats.prefix_hit_tokens += sequence.num_computed
        if sequence.family.num_cached_tokens is None:
            sequence.family.num_cached_tokens = sequence.num_computed

    def _sent(self, draft: PlanDraft) -> StepPlan | None:
        plan, stats = draft.finished(), self.stats
        if plan is None:
            return None
        self._unsent_pages = {}
        used_pages = [pool.num_used for pool in self.tables.pools]
        stats.num_steps += 1
        stats.num_micro_steps += plan.num_steps
        stats.num_computed_tokens += plan.num_tokens * plan.num_steps
        stats.num_copied_pages += len(plan.copies)
        stats.note_used_pages(used_pages)
        stats.cached_token_steps += sum(sequence.num_computed for sequence in self.running)
        stats.paged_token_steps += used_pages[0] * self.limits.page_size
        stats.contiguous_token_steps += len(self.running) * self.limits.max_model_len
        return plan
