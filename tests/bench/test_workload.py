"""Random workloads are the same each time, and as long as they say."""

import pytest

from jaxinfer.bench.workload import random_workload, workload_from_file
from jaxinfer.errors import InvalidParameter


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


@pytest.mark.parametrize("num_prompts", [0, -1])
def test_a_dataset_gives_at_least_one_prompt(tmp_path, num_prompts):
    (tmp_path / "prompts").write_text("one\ntwo")
    with pytest.raises(InvalidParameter, match="must be at least 1"):
        workload_from_file(tmp_path / "prompts", num_prompts=num_prompts, output_len=1)


def test_only_a_newline_ends_a_line_of_a_dataset(tmp_path):
    (tmp_path / "prompts").write_text(
        '{"prompt": "a\u2028b", "output_len": 3}\nc\x0cd\n', encoding="utf-8"
    )
    workload = workload_from_file(tmp_path / "prompts", num_prompts=None, output_len=1)
    assert workload.prompts == ["a\u2028b", "c\x0cd"]
    assert workload.output_lens == [3, 1]
    [first] = workload_from_file(tmp_path / "prompts", num_prompts=1, output_len=1).prompts
    assert first == "a\u2028b"
