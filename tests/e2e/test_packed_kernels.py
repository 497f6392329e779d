"""On a CPU that can, kernels are packed and single rows attend in machine code: the same tokens."""

import pytest

from jaxinfer.engine.build import EngineBuilder, build_engine
from pallas_kernels import native
from tests.e2e.test_blocked_kernels import PARAMS, SMALLEST_GAP, wide_model
from tests.e2e.tiny import prompts, request, serve, tokens_of

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))

LIMITS = {
    "max_num_batched_tokens": 32,
    "prefill_tokens": (32,),
    "page_size": 8,
    "num_pages": 33,
    "prompt_logprobs": False,
}


def tokens_with(slots: int) -> dict:
    engine = build_engine(wide_model(), None, max_num_seqs=slots, **LIMITS)
    asked = [request(f"r{i}", p, **PARAMS) for i, p in enumerate(prompts(3, [5, 21]))]
    events = serve(engine, asked)
    for position in (position for event in events for position in event.logprobs):
        best, second = sorted((entry.logprob for entry in position.values()), reverse=True)[:2]
        assert best - second > SMALLEST_GAP, "choose other prompts"
    return tokens_of(events, asked)


def test_packed_kernels_give_the_tokens_of_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    alone, together = tokens_with(1), tokens_with(4)
    assert alone == together
    monkeypatch.setattr(native, "missing", lambda: "left out by this test")
    assert tokens_with(4) == together


def test_the_budget_tells_whether_weights_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    def budget() -> str:
        builder = EngineBuilder(wide_model().shapes, max_num_seqs=4, **LIMITS)
        return str(builder.compile().budget)

    assert "weights packed for this CPU" in budget()
    monkeypatch.setattr(native, "missing", lambda: "left out by this test")
    assert "not packed for this CPU: left out by this test" in budget()
