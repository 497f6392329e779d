"""After an engine is built nothing compiles, and no step's memory grows with the pool."""

from collections.abc import Callable

import pytest

from jaxinfer.decoding.programs import ProgramShapes, ProgramTable
from jaxinfer.engine.engine import Engine
from tests.e2e.tiny import EOS, House, prompts, request, run, tiny_model


def every_path(engine: Engine) -> None:
    """Greedy, drawn, every processor, log-probabilities, forks, copies, hits, preemption, reset."""
    asked = [
        request(f"greedy{i}", p, temperature=0.0, max_tokens=24, ignore_eos=True)
        for i, p in enumerate(prompts(5, [3, 20, 31]))
    ]
    asked.append(request("drawn", prompts(1, [9])[0], seed=1, top_k=5, top_p=0.8, min_p=0.01))
    asked.append(
        request(
            "processed",
            prompts(1, [21])[0],
            presence_penalty=0.5,
            frequency_penalty=0.5,
            repetition_penalty=1.1,
            logit_bias={EOS: -5.0},
            allowed_token_ids=list(range(40)),
            min_tokens=3,
            logprobs=5,
            prompt_logprobs=3,
        )
    )
    asked.append(request("forked", prompts(1, [13])[0], n=3, seed=2, max_tokens=12))
    run(engine, asked)
    run(engine, [request("again", asked[1].prompt_token_ids, max_tokens=4)])
    engine.runner.reset()


@pytest.mark.parametrize("num_pages", [40, 12], ids=["roomy", "preempting"])
def test_no_path_compiles_once_the_engine_is_built(
    house: House, compilations: Callable[[], int], num_pages: int
) -> None:
    engine = house.engine(num_pages=num_pages, decode_steps=(1, 4))
    ready = compilations()
    every_path(engine)
    assert compilations() == ready
    assert engine.stats.num_copied_pages > 0
    if num_pages == 12:
        assert engine.stats.num_preemptions > 0


@pytest.mark.parametrize(
    "kv_dtype", ["float32", "bfloat16", pytest.param("float16", marks=pytest.mark.slow)]
)
def test_no_programs_temporaries_grow_with_the_pool(kv_dtype: str) -> None:
    model = tiny_model((None,))

    def temporaries(num_pages: int) -> dict[str, int]:
        shapes = ProgramShapes(
            num_slots=2,
            pages_per_sequence=8,
            page_size=8,
            num_pages=(num_pages,),
            kv_dtype=kv_dtype,
            prefill_tokens=(16,),
            decode_steps=(1, 2),
            score_rows=4,
        )
        table = ProgramTable(model, shapes)
        table.compile()
        return {
            name: table[name].memory_analysis().temp_size_in_bytes
            for name in (*table.step_names, "copy", "admit")
        }

    assert temporaries(16) == temporaries(512)
