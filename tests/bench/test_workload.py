"""Random workloads are the same each time, and as long as they say."""

from jaxinfer.bench.workload import random_workload


def test_equal_seeds_draw_equal_prompts_within_the_vocabulary():
    def prompts(seed):
        return random_workload(3, input_len=50, output_len=4, vocab_size=7, seed=seed).prompts

    assert prompts(1) == prompts(1) != prompts(2)
    ids = [token for prompt in prompts(1) for token in prompt["prompt_token_ids"]]
    assert len(ids) == 150
    assert set(ids) == set(range(7))


def test_every_request_runs_to_its_length_whatever_it_says():
    [params] = random_workload(1, input_len=1, output_len=4, vocab_size=7).sampling_params
    assert (params.max_tokens, params.ignore_eos, params.temperature) == (4, True, 0)
