"""The batch that is promised is the batch that an engine of that memory serves."""

import jax

from jaxinfer.engine.build import build_engine
from jaxinfer.llm.kv_cost import batch_bytes, group_facts, largest_batch, longest_context
from jaxinfer.models.loading import dummy_model
from sharding import make_mesh
from tests.e2e.tiny import PAGE, prompts, request, tiny_config

CONTEXT, ROOM = 48, 200_000


def test_an_engine_of_that_memory_serves_the_largest_batch_at_once(monkeypatch):
    config = tiny_config((12, None))
    groups = group_facts(config, PAGE, "float32")
    batch = largest_batch(config, groups, PAGE, ROOM, CONTEXT)
    assert batch > 1
    monkeypatch.setattr("jaxinfer.engine.build.CPU_POOL_BYTES", ROOM)
    model = dummy_model(config, mesh=make_mesh(), max_len=CONTEXT)
    engine = build_engine(
        model,
        None,
        max_num_seqs=batch,
        page_size=PAGE,
        prefill_tokens=(512,),
        prompt_logprobs=False,
    )
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(engine.runner._cache))
    assert held == batch_bytes(config, groups, PAGE, batch, CONTEXT) <= ROOM
    assert batch_bytes(config, groups, PAGE, batch + 1, CONTEXT) > ROOM
    # All of them together, up to the end of their context.
    for i, prompt in enumerate(prompts(batch, [CONTEXT - 8])):
        asked = request(f"r{i}", prompt, temperature=0.0, max_tokens=8, ignore_eos=True)
        engine.submit(asked, lambda events: None)
    running = 0
    while engine.step():
        running = max(running, engine.num_running)
    assert running == batch
    assert engine.stats.num_preemptions == 0


def test_a_batch_of_one_is_as_long_as_the_longest_context():
    for windows in ((None,), (12, None), (12,), (30, 5)):
        config = tiny_config(windows)
        groups = group_facts(config, PAGE, "float32")
        for room in range(0, 160_000, 17_001):
            longest = longest_context(config, groups, PAGE, room)
            lengths = (1, max(1, longest), min(longest + 1, config.max_len), config.max_len)
            batches = [largest_batch(config, groups, PAGE, room, length) for length in lengths]
            assert [batch > 0 for batch in batches] == [length <= longest for length in lengths]
            assert batches == sorted(batches, reverse=True)
