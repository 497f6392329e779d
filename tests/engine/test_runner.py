"""The device runner, where the engine on the fake one cannot tell."""

import itertools

import pytest

from jaxinfer.engine import Engine
from jaxinfer.engine.build import build_engine
from jaxinfer.errors import InvalidParameter
from tests.e2e.tiny import EOS, PAGE, request, run, tiny_model

PROMPT = [11, 12, 13]


class WordTokenizer:
    """A word is the number of its token; a space before it changes nothing."""

    drops_first_space = False
    eos_token_ids = ()

    def token_bytes(self, token_id: int) -> bytes:
        return b"."

    def id_to_token(self, token_id: int) -> str:
        return "."

    def is_special(self, token_id: int) -> bool:
        return False

    def encode(self, text: str, **_: bool) -> list[int]:
        return [int(word) for word in text.split()]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return build_engine(
        tiny_model((None,)),
        WordTokenizer(),
        max_num_seqs=2,
        max_num_batched_tokens=16,
        prefill_tokens=(16,),
        page_size=PAGE,
        num_pages=20,
    )


def test_bad_words_of_a_single_token_are_never_sampled(engine: Engine) -> None:
    params = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True}
    [free] = run(engine, [request("free", PROMPT, **params)])["free"]
    words = [str(token) for token in sorted(set(free))]
    [kept] = run(engine, [request("kept", PROMPT, bad_words=words, **params)])["kept"]
    assert len(kept) == 8
    assert not set(free) & set(kept)


def test_allowed_ids_that_bad_words_empty_are_refused_on_submission(engine: Engine) -> None:
    asked = request("r", PROMPT, allowed_token_ids=[20, 21], bad_words=["20", "21"])
    with pytest.raises(InvalidParameter, match="leave no token to sample"):
        engine.submit(asked, print)
    assert engine.num_unfinished == 0


def test_allowed_ids_that_only_end_before_min_tokens_are_refused_on_submission(
    engine: Engine,
) -> None:
    asked = request("r", PROMPT, allowed_token_ids=[EOS], min_tokens=2)
    with pytest.raises(InvalidParameter, match="min_tokens = 2 is not allowed"):
        engine.submit(asked, print)
    assert engine.num_unfinished == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_bad_words_yield_where_they_would_leave_no_allowed_id(
    engine: Engine, temperature: float
) -> None:
    params = {"temperature": temperature, "max_tokens": 6, "ignore_eos": True}
    one = request("one", PROMPT, allowed_token_ids=[20], bad_words=["20 20"], **params)
    two = request("two", PROMPT, allowed_token_ids=[20, 21], bad_words=["20 20"], **params)
    tokens = run(engine, [one, two])
    assert tokens["one"] == [[20] * 6]
    [sample] = tokens["two"]
    assert set(sample) <= {20, 21}
    assert (20, 20) not in itertools.pairwise(sample)


def test_a_reset_lets_the_old_pools_go_before_it_makes_new_ones(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, seen = engine.runner, []
    empty_cache = runner._programs.empty_cache
    monkeypatch.setattr(
        runner._programs,
        "empty_cache",
        lambda: seen.append((runner._cache, runner._slots)) or empty_cache(),
    )
    runner.reset()
    assert seen == [(None, None)]
