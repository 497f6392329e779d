"""An engine on the fake runner, with everything checked after each step."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jaxinfer.engine import CacheGroup, Engine, EngineLimits, Request
from jaxinfer.engine.step import Finish
from jaxinfer.outputs import FinishReason, Logprob, TokenEvent
from jaxinfer.sampling_params import SamplingParams
from tests.engine.fake_runner import (
    FakeModel,
    FakeRunner,
    logprob_of,
    oracle,
    ranking,
    token_of,
)
from tests.engine.guides import follows, name_of

VOCAB = 12


class FakeTokenizer:
    """Token 3 is "d": every token is one letter. Words are spelled letter by letter."""

    drops_first_space = False

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([97 + token_id])

    def id_to_token(self, token_id: int) -> str:
        return chr(97 + token_id)

    def is_special(self, token_id: int) -> bool:
        return False

    def encode(self, text: str, **_: bool) -> list[int]:
        return [ord(letter) - 97 for letter in text if letter != " "]


def text_of(token_ids) -> str:
    return "".join(chr(97 + token) for token in token_ids)


def full_group(num_pages: int = 64) -> CacheGroup:
    return CacheGroup(kind="full", window=None, num_pages=num_pages)


def window_group(window: int, num_pages: int = 64) -> CacheGroup:
    return CacheGroup(kind="window", window=window, num_pages=num_pages)


@dataclass
class Output:
    """One output of a request."""

    tokens: list[int]
    text: str
    finish_reason: FinishReason | None
    stop_reason: int | str | None
    logprobs: list[dict[int, Logprob]] | None


def position_logprobs(token: int, state: int, num_alternatives: int) -> dict[int, Logprob]:
    order = ranking(state, VOCAB)
    return {
        id_: Logprob(
            logprob=logprob_of(state, id_), rank=order.index(id_) + 1, decoded_token=chr(97 + id_)
        )
        for id_ in (token, *order[:num_alternatives])
    }


class House:
    """An engine, the events of its requests, and what they should have been."""

    def __init__(
        self,
        groups: tuple[CacheGroup, ...] = (full_group(),),
        *,
        lookahead: bool = True,
        tokenizer: FakeTokenizer | None = None,
        clock: Callable[[], float] | None = None,
        **limits,
    ):
        defaults = {"max_model_len": 64, "vocab_size": VOCAB, "page_size": 4, "max_num_seqs": 4}
        self.limits = EngineLimits(**defaults | {"max_num_batched_tokens": 16} | limits)
        self.groups = tuple(groups)
        self.runner = FakeRunner(self.limits, self.groups)
        self.now = 0.0
        self.engine = Engine(
            self.runner,
            tokenizer or FakeTokenizer(),
            clock=clock or (lambda: self.now),
            lookahead=lookahead,
            debug_checks=True,
        )
        self.events: dict[str, list[TokenEvent]] = defaultdict(list)
        self.requests: dict[str, Request] = {}

    @property
    def scheduler(self):
        return self.engine._loop.scheduler

    @property
    def stats(self):
        return self.engine.stats

    def submit(self, request_id: str, prompt: list[int], *, params=None, **fields) -> Request:
        """Fields of the request, and those of its sampling parameters, by name."""
        ours = {name: fields.pop(name) for name in tuple(fields) if name in Request.__annotations__}
        params = params or SamplingParams(**fields)
        request = Request(request_id=request_id, prompt_token_ids=prompt, params=params, **ours)
        self.engine.submit(request, self.receive)
        self.requests[request_id] = request
        return request

    def receive(self, events: list[TokenEvent]) -> None:
        for event in events:
            before = [old for old in self.events[event.request_id] if old.index == event.index]
            assert not any(old.finish_reason for old in before), "an event after the last one"
            self.events[event.request_id].append(event)

    def step(self) -> bool:
        """One step; then what is published must be there, and what is free is poisoned."""
        num_plans = len(self.runner.plans)
        more = self.engine.step()
        if len(self.runner.plans) > num_plans:
            self.check_sent_tables()
        tables = self.scheduler.tables
        for index, pool in zip(tables.indexes, self.runner.pools, strict=True):
            for entry in index._entries.values():
                held = [token_of(value) for value in pool[entry.page].tolist()]
                assert held == np.frombuffer(entry.tokens, np.int32).tolist()
        self.runner.poison([list(pool.unused_pages) for pool in tables.pools])
        return more

    def check_sent_tables(self) -> None:
        """The device was told of every page, and of every one that was given back."""
        for sequence in self.scheduler.running:
            pages = {
                (group, column): page
                for group, table in enumerate(sequence.pages)
                for column, page in enumerate(table)
                if page
            }
            assert self.runner.sent_tables[sequence.slot.index] == pages

    def run(self, max_steps: int = 2000) -> None:
        """Steps until nothing is left to do."""
        for _ in range(max_steps):
            if not self.step():
                return
        raise AssertionError("the engine does not come to an end")

    def output(self, request_id: str, index: int = 0) -> Output:
        """What has come of one output so far."""
        events = [event for event in self.events[request_id] if event.index == index]
        wants = self.requests[request_id].params.logprobs is not None
        return Output(
            tokens=[token for event in events for token in event.token_ids],
            text="".join(event.text for event in events),
            finish_reason=events[-1].finish_reason if events else None,
            stop_reason=events[-1].stop_reason if events else None,
            logprobs=[p for event in events for p in event.logprobs or ()] if wants else None,
        )

    def expected(self, request_id: str, index: int = 0) -> Output:
        """The same, as a plain loop finds it."""
        request = self.requests[request_id]
        params, prompt = request.params, list(map(int, request.prompt_token_ids))
        room = self.limits.max_model_len - len(prompt)
        guide = name_of(params.structured_outputs)
        bad_words = [[ord(letter) - 97 for letter in word] for word in params.bad_words]
        tokens, states, finish = oracle(
            prompt,
            params,
            index=index,
            max_tokens=min(room, params.max_tokens or room),
            vocab_size=VOCAB,
            groups=self.groups,
            banned=lambda generated: frozenset(
                word[-1] for word in bad_words if (generated + word[-1:])[-len(word) :] == word
            ),
            follows=None if guide is None else lambda generated: follows(guide, text_of(generated)),
        )
        text = text_of(tokens[:-1] if finish is Finish.STOP else tokens)
        reason = finish if isinstance(finish, FinishReason) else FinishReason.LENGTH
        stop_reason = None
        if finish is Finish.STOP:
            reason = FinishReason.STOP
            stop_reason = tokens[-1] if tokens[-1] in params.stop_token_ids else None
        ends = [(text.find(stop) + len(stop), stop) for stop in params.stop if stop in text]
        if ends:
            reason, (end, stop_reason) = FinishReason.STOP, min(ends)
            tokens = tokens[:end]
            text = text[: end if params.include_stop_str_in_output else end - len(stop_reason)]
        logprobs = None
        if params.logprobs is not None:
            befores = states[len(prompt) - 1 :]
            logprobs = [
                position_logprobs(token, state, params.logprobs)
                for token, state in zip(tokens, befores, strict=False)
            ]
        return Output(tokens, text, reason, stop_reason, logprobs)

    def expected_prompt_logprobs(self, request_id: str):
        request = self.requests[request_id]
        model, wanted = FakeModel(self.groups), request.params.prompt_logprobs
        if wanted is None:
            return None
        states = [model.feed(token) for token in request.prompt_token_ids]
        targets = list(request.prompt_token_ids)[1:]
        pairs = zip(targets, states, strict=False)
        return (None, *(position_logprobs(token, state, wanted) for token, state in pairs))

    def assert_as_expected(self, request_id: str) -> None:
        for index in range(self.requests[request_id].params.n):
            assert self.output(request_id, index) == self.expected(request_id, index), index
        shown = [event.prompt_logprobs for event in self.events[request_id]]
        [shown] = [entry for entry in shown if entry is not None] or [None]
        assert shown == self.expected_prompt_logprobs(request_id)

    def assert_idle(self) -> None:
        """Slots and pages are as at the start."""
        assert not self.scheduler.running
        assert not self.scheduler.waiting
        assert self.scheduler.slots.num_free == self.limits.max_num_seqs
        for pool in self.scheduler.tables.pools:
            assert pool.num_free == pool.num_pages - 1
        assert self.engine.num_unfinished == 0
