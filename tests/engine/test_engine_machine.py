"""The whole engine under any order of events, with every book checked after each step."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from jaxinfer.engine.errand import WaitFor
from jaxinfer.outputs import FinishReason
from tests.engine.guides import GUIDES
from tests.engine.house import VOCAB, House, full_group, window_group

#: Prompts that share beginnings: what the prefix cache is for.
STEMS = ([], [1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 4, 5, 5, 5], [6] * 14, [9] * 4 + [6] * 9)

GROUPS = (
    (full_group(9),),
    (full_group(9), window_group(6, 7)),
    (full_group(12), window_group(3, 4), window_group(1, 3)),
    (window_group(5, 6),),
)

tails = st.lists(st.integers(1, VOCAB - 1), min_size=1, max_size=9)
CUT_SHORT = (FinishReason.ABORT, FinishReason.DEADLINE, FinishReason.ERROR)


class EngineMachine(RuleBasedStateMachine):
    requests = Bundle("requests")

    @initialize(
        groups=st.sampled_from(GROUPS),
        lookahead=st.booleans(),
        steps=st.sampled_from([(1,), (1, 3)]),
        num_slots=st.integers(1, 4),
        caching=st.booleans(),
        budget=st.integers(4, 16),
    )
    def build(self, groups, lookahead, steps, num_slots, caching, budget):
        self.house = House(
            groups,
            lookahead=lookahead,
            decode_steps=steps,
            max_model_len=32,
            max_num_seqs=num_slots,
            max_num_batched_tokens=budget,
            enable_prefix_caching=caching,
        )
        self.count = 0
        self.errands = []

    @rule(
        target=requests,
        stem=st.sampled_from(STEMS),
        tail=tails,
        n=st.integers(1, 3),
        max_tokens=st.integers(1, 9),
        priority=st.integers(0, 1),
        stop=st.sampled_from([(), (), ("ab",), ("c", "bd"), ("eee",)]),
        stop_token_ids=st.sampled_from([(), (3, 4)]),
        bad_words=st.sampled_from([(), (), ("ab", "c"), ("de", "fa")]),
        guide=st.sampled_from([None, None, *GUIDES]),
        allowed=st.sampled_from([None, None, None, (0, 1, 2, 3, 4, 5, 10), (1, 2, 3)]),
        wants=st.sampled_from([{}, {}, {"logprobs": 2}, {"prompt_logprobs": 1}]),
        bypass=st.booleans(),
        salt=st.sampled_from(["", "", "x"]),
        patience=st.sampled_from([None, None, None, 3]),
    )
    def submit(
        self, stem, tail, priority, bypass, salt, patience, stop, wants, guide, allowed, **params
    ):
        name = f"r{self.count}"
        self.count += 1
        self.house.submit(
            name,
            stem + tail,
            stop=stop,
            priority=priority,
            bypass_prefix_cache=bypass,
            cache_salt=salt,
            deadline=None if patience is None else self.house.now + patience,
            **params,
            **wants,
            structured_outputs=None if guide is None else GUIDES[guide],
            # Without a guide the fake model may find no token among so few.
            allowed_token_ids=allowed if guide else None,
        )
        return name

    @rule(request=requests)
    def abort(self, request):
        self.house.engine.abort(request)

    @rule(count=st.integers(1, 12))
    def step(self, count):
        for _ in range(count):
            self.house.now += 1
            self.house.step()

    @rule(
        wait_for=st.sampled_from(WaitFor),
        patience=st.sampled_from([None, 3]),
        is_cancelled=st.sampled_from([False, False, True]),
    )
    def between_steps(self, wait_for, patience, is_cancelled):
        engine, runner = self.house.engine, self.house.runner

        def look():
            assert all(entry.plan is None or entry.result is not None for entry in runner.queue)
            jobs = engine._loop.roster.jobs.values()
            begun = [job for job in jobs if job.family.is_begun]
            assert not {WaitFor.FLIGHT: (), WaitFor.BEGUN: begun, WaitFor.ALL: jobs}[wait_for]

        future = engine.between_steps(look, wait_for=wait_for, timeout=patience)
        self.errands.append(future)
        if is_cancelled:
            future.cancel()

    @precondition(lambda self: self.house.engine.num_running)
    @rule(where=st.sampled_from(["launch", "sample", "read"]))
    def fail(self, where):
        self.house.runner.fail_on = where

    @invariant()
    def check_what_has_ended(self):
        house = getattr(self, "house", None)
        for name, request in house.requests.items() if house else ():
            for index in range(request.params.n):
                if house.events[name]:
                    self.check_output(name, index)

    def check_output(self, name, index):
        """An output is what it should be, or a beginning of that when it was cut short."""
        expected, got = self.house.expected(name, index), self.house.output(name, index)
        assert got.tokens == expected.tokens[: len(got.tokens)]
        if got.finish_reason not in (None, *CUT_SHORT):
            assert got == expected

    def teardown(self):
        house = getattr(self, "house", None)
        if house is None:
            return
        house.runner.fail_on = None
        house.run()
        for name, request in house.requests.items():
            for index in range(request.params.n):
                assert house.output(name, index).finish_reason is not None
        self.check_what_has_ended()
        house.assert_idle()
        for errand in self.errands:
            assert errand.cancelled() or isinstance(errand.exception(0), TimeoutError | None)


TestEngineMachine = EngineMachine.TestCase
TestEngineMachine.settings = settings(
    max_examples=60, stateful_step_count=25, suppress_health_check=[HealthCheck.too_slow]
)
