"""One tiny model of every family through the engine: the tokens are those of transformers.

However they come about: alone and in chunks, side by side, behind prefix hits, preempted and begun
again. All in one engine, for its programs take longest.
"""

import pytest

from jaxinfer.engine.build import build_engine
from jaxinfer.models.loading import load_model
from jaxinfer.models.registry import family_for
from sharding import make_mesh
from tests.e2e.tiny import poison, request, run
from tests.models.golden_case import CASES, GoldenCase

MAX_LEN, PAGE, CHUNK = 64, 8, 16
ONE_OF_EACH = {family_for(case.config).name: case for case in reversed(CASES)}
#: Of families that differ in nothing an engine sees, one.
UNLIKE = {
    *("llama", "gpt2", "gemma3", "cohere2", "ministral3"),
    *("mixtral", "gpt_oss", "llama4", "gemma3n", "gemma4"),
    *("deepseek_v2", "deepseek_v3", "minicpm3"),
}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=() if name in UNLIKE else pytest.mark.slow)
        for name, case in ONE_OF_EACH.items()
    ],
)
def test_a_family_through_the_engine_says_what_transformers_says(case: GoldenCase) -> None:
    model = load_model(case.source, mesh=make_mesh(), dtype="float32", max_len=case.max_len)
    short, long = case.sequences
    # Where every layer has a window, no sequence holds more than the widest and a chunk.
    windows = [layer.mixer.reach or MAX_LEN for layer in model.config.layers]
    most = min(len(long.prompt) + len(long.greedy), max(windows) + CHUNK)
    engine = build_engine(
        model,
        None,
        max_num_seqs=2,
        max_num_batched_tokens=CHUNK,
        prefill_tokens=(CHUNK,),
        page_size=PAGE,
        # Page 0, the longest sequence, and one more: not enough for two.
        num_pages=2 + -(-most // PAGE),
        prompt_logprobs=False,
    )
    poison(engine)

    def assert_golden(*names: str) -> None:
        asked = {
            name: request(
                name,
                (sequence := {"s": short, "l": long}[name[0]]).prompt.tolist(),
                temperature=0.0,
                max_tokens=len(sequence.greedy),
                ignore_eos=True,
            )
            for name in names
        }
        said = run(engine, list(asked.values()))
        wanted = {"s": short.greedy.tolist(), "l": long.greedy.tolist()}
        assert said == {name: [wanted[name[0]]] for name in names}

    assert len(long.prompt) > CHUNK
    assert_golden("s")
    assert_golden("l")
    assert engine.stats.prefix_hit_tokens == 0
    assert_golden("l again")
    assert engine.stats.prefix_hit_tokens > 0
    assert_golden("s1", "l1", "s2", "l2")
    assert engine.stats.num_preemptions > 0
