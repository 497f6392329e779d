"""The bytes that a decode step reads are those of the weights, however they are held."""

import pytest

from jaxinfer import LLM
from jaxinfer.bench.latency import measure_latency
from jaxinfer.llm.facts import model_facts
from jaxinfer.llm.opening import open_model
from pallas_kernels import native
from tests.llm.tiny_model import SETTINGS, write_tiny_model


@pytest.mark.parametrize("max_num_seqs", [1, 4])
def test_a_weight_held_in_two_forms_is_read_once(tmp_path, max_num_seqs, monkeypatch):
    monkeypatch.setattr(native, "missing", lambda: "left out by this test")
    directory = write_tiny_model(tmp_path / "tiny", hidden_size=128, intermediate_size=128)
    facts = model_facts(open_model(directory, load_format="dummy"))
    settings = SETTINGS | {"max_num_seqs": max_num_seqs, "dtype": "bfloat16"}
    with LLM(directory, **settings) as llm:
        is_blocked = llm.budget.weights > llm.weight_bytes
        assert is_blocked == (max_num_seqs == 1)
        report = measure_latency(llm, batch_size=1, input_len=4, output_len=2, num_iters=1)
    assert report["weight_bytes_per_step"] == facts.weight_bytes["bfloat16"]
