"""A runner whose model can be worked out by hand, and which sees every mistake with pages.

Where a real cache holds keys and values, its pools hold for each token the token itself and a hash
of all that the model had seen before it. The next token is a hash of what the last one sees, read
through the page tables: a wrong page, a lost copy or a stale token changes the output. Steps run
on ``read``, in the order of their launch, so that nobody can look at a result too early.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np

from jaxinfer.bits import num_words, unpack_ids
from jaxinfer.engine.limits import CacheGroup, EngineLimits
from jaxinfer.engine.step import Finish, PromptLogprobs, Row, StepPlan, StepResult
from jaxinfer.errors import StepFailed
from jaxinfer.outputs import FinishReason
from jaxinfer.sampling_params import SamplingParams

POISON = -7
EOS = 0
MAX_ALTERNATIVES = 3


@dataclass(frozen=True, kw_only=True)
class FakeSampling:
    """What a slot knows of its request."""

    params: SamplingParams
    index: int
    max_tokens: int
    banned_token_ids: Collection[int] = ()


def state_of(position: int, visible: list[list[int]]) -> int:
    """What the model makes of a token that sees these values in each group, itself the last."""
    text = f"{position}:" + ";".join(",".join(map(str, values)) for values in visible)
    return int.from_bytes(blake2b(text.encode(), digest_size=7).digest(), "little")


def value_of(state: int, token: int) -> int:
    """What the cache holds for a token, once it was computed."""
    return state << 4 | token


def token_of(value: int) -> int:
    return value % 16


def first_seen(group: CacheGroup, position: int) -> int:
    return 0 if group.window is None else max(0, position + 1 - group.window)


class FakeModel:
    """The same model without pages: feed it tokens, and it says what it makes of each."""

    def __init__(self, groups: tuple[CacheGroup, ...]):
        self.groups = groups
        self.values: list[int] = []

    def feed(self, token: int) -> int:
        position = len(self.values)
        seen = [*self.values, token]
        state = state_of(position, [seen[first_seen(g, position) :] for g in self.groups])
        self.values.append(value_of(state, token))
        return state


def logprob_of(state: int, token: int) -> float:
    return -((state ^ (token * 2654435761)) % 997) / 97


def ranking(state: int, vocab_size: int) -> list[int]:
    return sorted(range(vocab_size), key=lambda token: (-logprob_of(state, token), token))


def next_token(
    state: int,
    sampling: FakeSampling,
    num_generated: int,
    vocab_size: int,
    banned: frozenset[int] = frozenset(),
) -> tuple[int, Finish]:
    """Token number ``num_generated`` (from 0) of a sample, and whether it is its last."""
    params = sampling.params
    stops = set(params.stop_token_ids) | (set() if params.ignore_eos else {EOS})
    forbidden = set(banned) | set(sampling.banned_token_ids)
    if params.allowed_token_ids is not None:
        forbidden |= set(range(vocab_size)) - set(params.allowed_token_ids)
    if num_generated < params.min_tokens:
        forbidden |= stops
    token = (state + 31 * sampling.index + 7 * (params.seed or 0)) % vocab_size
    while token in forbidden:
        token = (token + 1) % vocab_size
    if token in stops:
        return token, Finish.STOP
    is_last = num_generated + 1 == sampling.max_tokens
    return token, Finish.LENGTH if is_last else Finish.NOT


@dataclass
class FakeSlot:
    """What the device remembers of a slot."""

    tables: list[np.ndarray]
    generation: int = 0
    sampling: FakeSampling | None = None
    live: bool = False
    last_token: int = POISON
    num_cached: int = 0
    num_generated: int = 0


@dataclass(eq=False)
class FakePending:
    """A launched step, sampled once ``allowed`` is known, or pages to poison after all that was
    launched before."""

    plan: StepPlan | None = None
    allowed: Mapping[int, np.ndarray] | None = None
    poison: list[list[int]] = field(default_factory=list)
    result: StepResult | None = None


class FakeRunner:
    """See ``jaxinfer.engine.step.Runner``. ``fail_on``: that call fails, the next time."""

    eos_token_ids = (EOS,)

    def __init__(self, limits: EngineLimits, groups: tuple[CacheGroup, ...]):
        self.limits, self.groups = limits, groups
        self.fail_on: str | None = None
        self.plans: list[StepPlan] = []
        self.allowed: list[Mapping[int, np.ndarray]] = []
        self.num_resets = -1
        self.reset()

    def reset(self) -> None:
        size = self.limits.page_size
        self.num_resets += 1
        self.pools = [np.full((group.num_pages, size), POISON) for group in self.groups]
        self.slots = [
            FakeSlot([np.zeros(1 + self.limits.max_model_len // size, int) for _ in self.groups])
            for _ in range(self.limits.max_num_seqs)
        ]
        self.queue: list[FakePending] = []
        self.sent_tables: dict[int, dict[tuple[int, int], int]] = {}

    def slot_sampling(
        self,
        params: SamplingParams,
        *,
        index: int,
        max_tokens: int,
        banned_token_ids: Collection[int] = (),
    ) -> FakeSampling:
        return FakeSampling(
            params=params, index=index, max_tokens=max_tokens, banned_token_ids=banned_token_ids
        )

    def launch(self, plan: StepPlan) -> FakePending:
        self._fail_if("launch")
        self._check(plan)
        for entry in self.queue:
            assert entry.plan is None or entry.allowed is not None, "launched before it was sampled"
        pending = FakePending(plan)
        self.queue.append(pending)
        self.plans.append(plan)
        self._note_tables(plan)
        assert sum(entry.plan is not None for entry in self.queue) <= 2, "two steps ahead"
        return pending

    def sample(self, pending: FakePending, allowed: Mapping[int, np.ndarray]) -> None:
        self._fail_if("sample")
        assert pending.plan is not None
        assert pending.allowed is None, "sampled twice"
        assert not allowed or pending.plan.num_steps == 1
        assert set(allowed) <= {row.slot for row in pending.plan.rows if row.samples}
        for allowed_W in allowed.values():
            assert (allowed_W.dtype, *allowed_W.shape) == (
                np.uint32,
                num_words(self.limits.vocab_size),
            )
        pending.allowed = allowed
        self.allowed.append(allowed)

    def read(self, pending: FakePending) -> StepResult:
        self._fail_if("read")
        while pending.result is None:
            entry = self.queue.pop(0)
            if entry.plan is not None:
                assert entry.allowed is not None, "read before it was sampled"
                entry.result = self._run(entry.plan, entry.allowed)
            for pool, pages in zip(self.pools, entry.poison, strict=False):
                pool[pages] = POISON
        return pending.result

    def poison(self, pages_by_group: list[list[int]]) -> None:
        """These pages hold nothing of worth any more, once the launched steps are over."""
        self.queue.append(FakePending(poison=pages_by_group))

    def _note_tables(self, plan: StepPlan) -> None:
        """Every slot's page tables after the launched steps, as (group, column) -> page."""
        for admission in plan.admissions:
            self.sent_tables[admission.slot] = {}
        for update in plan.page_updates:
            table = self.sent_tables[update.slot]
            table.pop((update.group, update.column), None)
            if update.page:
                table[update.group, update.column] = update.page

    def _fail_if(self, where: str) -> None:
        if self.fail_on == where:
            self.fail_on = None
            raise StepFailed(f"the fake device failed on {where}")

    def _check(self, plan: StepPlan) -> None:
        """What every plan promises."""
        assert plan.rows
        assert plan.num_tokens <= self.limits.max_num_batched_tokens
        slots = [row.slot for row in plan.rows]
        assert len(set(slots)) == len(slots) <= self.limits.max_num_seqs
        assert [row.zone for row in plan.rows] == sorted(row.zone for row in plan.rows)
        assert plan.num_steps in self.limits.decode_steps
        assert plan.num_steps == 1 or plan.is_decode_only
        assert all(row.tokens is None or len(row.tokens) for row in plan.rows)
        entries = [(update.group, update.slot, update.column) for update in plan.page_updates]
        assert len(set(entries)) == len(entries)
        written = [(copy.group, copy.target) for copy in plan.copies]
        assert len(set(written)) == len(written)
        assert not set(written) & {(copy.group, copy.source) for copy in plan.copies}

    def _run(self, plan: StepPlan, allowed: Mapping[int, np.ndarray]) -> StepResult:
        for admission in plan.admissions:
            slot = self.slots[admission.slot]
            assert admission.generation > slot.generation
            self.slots[admission.slot] = FakeSlot(
                [np.zeros_like(table) for table in slot.tables],
                generation=admission.generation,
                sampling=admission.sampling,
                live=True,
                num_generated=len(admission.generated),
            )
        for copy in plan.copies:
            self.pools[copy.group][copy.target] = self.pools[copy.group][copy.source]
        for update in plan.page_updates:
            self.slots[update.slot].tables[update.group][update.column] = update.page
        shape = (plan.num_steps, self.limits.max_num_seqs)
        tops = (*shape, MAX_ALTERNATIVES)
        result = StepResult(
            tokens_JS=np.full(shape, POISON),
            emitted_JS=np.zeros(shape, bool),
            finish_JS=np.zeros(shape, int),
            logprob_JS=np.full(shape, np.nan),
            rank_JS=np.zeros(shape, int),
            top_ids_JSA=np.zeros(tops, int),
            top_logprobs_JSA=np.full(tops, np.nan),
            prompt_logprobs={},
        )
        for micro_step in range(plan.num_steps):
            self._run_rows(plan.rows, allowed, result, micro_step)
        return result

    def _run_rows(
        self,
        rows: tuple[Row, ...],
        allowed: Mapping[int, np.ndarray],
        result: StepResult,
        micro_step: int,
    ) -> None:
        rows = tuple(row for row in rows if self._is_active(row))
        self._check_owners(rows, micro_step)
        for row in reversed(rows):  # whoever leans on a row of the same step meets old pages
            start, tokens = self._chunk(row, micro_step)
            slot = self.slots[row.slot]
            states = [self._compute(slot, start + i, token) for i, token in enumerate(tokens)]
            slot.num_cached = start + len(tokens)
            if row.targets is not None and len(row.targets):
                result.prompt_logprobs[row.slot] = self._score(row.targets.tolist(), states)
            if row.samples:
                banned = self._banned(allowed.get(row.slot))
                self._sample(slot, states[-1], (micro_step, row.slot), result, banned)

    def _is_active(self, row: Row) -> bool:
        slot = self.slots[row.slot]
        assert slot.generation == row.generation
        return slot.live

    def _chunk(self, row: Row, micro_step: int) -> tuple[int, list[int]]:
        slot = self.slots[row.slot]
        if row.tokens is not None:
            assert slot.num_cached in (0, row.start)
            return row.start, row.tokens.tolist()
        assert slot.num_cached == row.start + micro_step
        return slot.num_cached, [slot.last_token]

    def _check_owners(self, rows: tuple[Row, ...], micro_step: int) -> None:
        """A page that a row writes is in no other row's table."""
        size = self.limits.page_size
        for group in range(len(self.groups)):
            tables = {row.slot: self.slots[row.slot].tables[group] for row in rows}
            users = Counter(int(page) for table in tables.values() for page in table)
            for row in rows:
                start, tokens = self._chunk(row, micro_step)
                for column in range(start // size, (start + len(tokens) - 1) // size + 1):
                    page = int(tables[row.slot][column])
                    assert page > 0, f"column {column} has no page"
                    assert users[page] == 1, f"page {page} is written by one of {users[page]} users"

    def _compute(self, slot: FakeSlot, position: int, token: int) -> int:
        """Writes what the cache holds for a token; returns what the model makes of it."""
        page_size = self.limits.page_size
        column, offset = divmod(position, page_size)
        visible = []
        for group, pool, table in zip(self.groups, self.pools, slot.tables, strict=True):
            pool[table[column], offset] = token
            seen = range(first_seen(group, position), position + 1)
            visible.append([int(pool[table[p // page_size], p % page_size]) for p in seen])
            assert POISON not in visible[-1], (position, visible[-1])
        state = state_of(position, visible)
        for pool, table in zip(self.pools, slot.tables, strict=True):
            pool[table[column], offset] = value_of(state, token)
        return state

    def _banned(self, allowed_W: np.ndarray | None) -> frozenset[int]:
        if allowed_W is None:
            return frozenset()
        return frozenset(range(self.limits.vocab_size)) - set(unpack_ids(allowed_W).tolist())

    def _sample(
        self,
        slot: FakeSlot,
        state: int,
        at: tuple[int, int],
        result: StepResult,
        banned: frozenset[int],
    ) -> None:
        vocab_size = self.limits.vocab_size
        token, finish = next_token(state, slot.sampling, slot.num_generated, vocab_size, banned)
        slot.last_token = token
        slot.num_generated += 1
        slot.live = finish is Finish.NOT
        result.tokens_JS[at], result.emitted_JS[at], result.finish_JS[at] = token, True, finish
        if slot.sampling.params.logprobs is not None:
            scores = self._score([token], [state])
            result.logprob_JS[at] = scores.logprob_C[0]
            result.rank_JS[at] = scores.rank_C[0]
            result.top_ids_JSA[at] = scores.top_ids_CA[0]
            result.top_logprobs_JSA[at] = scores.top_logprobs_CA[0]

    def _score(self, tokens: list[int], states: list[int]) -> PromptLogprobs:
        """Of each token, after the state before it."""
        pairs = list(zip(tokens, states, strict=False))
        orders = [ranking(state, self.limits.vocab_size) for _, state in pairs]
        tops = [order[:MAX_ALTERNATIVES] for order in orders]
        return PromptLogprobs(
            logprob_C=np.array([logprob_of(state, token) for token, state in pairs]),
            rank_C=np.array([o.index(token) + 1 for o, token in zip(orders, tokens, strict=True)]),
            top_ids_CA=np.array(tops),
            top_logprobs_CA=np.array(
                [
                    [logprob_of(state, top) for top in top_ids]
                    for top_ids, (_, state) in zip(tops, pairs, strict=True)
                ]
            ),
        )


def oracle(
    prompt: list[int],
    params: SamplingParams,
    *,
    index: int,
    max_tokens: int,
    vocab_size: int,
    groups: tuple[CacheGroup, ...],
    banned: Callable[[list[int]], frozenset[int]] = lambda generated: frozenset(),
    follows: Callable[[list[int]], tuple[frozenset[int], bool]] | None = None,
) -> tuple[list[int], list[int], Finish | FinishReason]:
    """One sample by a plain loop without pages, slots or neighbours.

    ``follows``: the tokens of a text that its guide lets follow some, and whether it may end there.

    Returns its tokens, the states before each token of prompt and output but the first, and why it
    ended: a FinishReason where that is not the last token's doing.
    """
    sampling = FakeSampling(params=params, index=index, max_tokens=max_tokens)
    model, generated, finish = FakeModel(groups), [], Finish.NOT
    states = [model.feed(token) for token in prompt]
    stops = set(params.stop_token_ids) | (set() if params.ignore_eos else {EOS})
    own = set(range(vocab_size) if params.allowed_token_ids is None else params.allowed_token_ids)
    while True:
        forbidden = banned(generated)
        if follows is not None:
            letters, may_end = follows(generated)
            may_end &= len(generated) >= params.min_tokens
            allowed = ((letters - stops) | (stops if may_end else set())) & own
            if not allowed:
                return generated, states, FinishReason.STOP if may_end else FinishReason.ERROR
            allowed = allowed - forbidden or allowed
            forbidden = frozenset(range(vocab_size)) - allowed
        token, finish = next_token(states[-1], sampling, len(generated), vocab_size, forbidden)
        generated.append(token)
        if follows is not None and finish is not Finish.STOP:
            letters, may_end = follows(generated)
            if not letters and may_end and len(generated) >= params.min_tokens:
                return generated, states, FinishReason.STOP
        if finish is not Finish.NOT:
            return generated, states, finish
        states.append(model.feed(token))
