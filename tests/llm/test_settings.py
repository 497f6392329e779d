"""Settings of a wrong type or range are refused before a model is looked for."""

import math

import pytest

from jaxinfer import LLM
from jaxinfer.errors import InvalidParameter
from jaxinfer.llm import llm as llm_module
from jaxinfer.llm.settings import verify_settings

DEFAULTS = {
    "max_model_len": None,
    "max_num_seqs": 32,
    "max_num_batched_tokens": 512,
    "page_size": 64,
    "num_pages": None,
    "memory_utilization": 0.9,
    "seed": 0,
    "prefill_tokens": None,
    "decode_steps": (1,),
}

WRONG = [
    ("max_num_seqs", 2.5, "from 1 to"),
    ("max_num_seqs", "4", "from 1 to"),
    ("max_num_seqs", True, "from 1 to"),
    ("max_num_seqs", 2**70, "from 1 to"),
    ("max_num_batched_tokens", None, "from 1 to"),
    ("max_model_len", 32.5, "None takes what the model allows"),
    ("max_model_len", "32", "None takes what the model allows"),
    ("num_pages", 2.5, "None takes what the memory holds"),
    ("num_pages", 1, "from 2 to"),
    ("page_size", 8.0, "must be an int"),
    ("page_size", None, "must be an int"),
    ("memory_utilization", "0.9", "above 0 and at most 1"),
    ("memory_utilization", None, "above 0 and at most 1"),
    ("memory_utilization", True, "above 0 and at most 1"),
    ("memory_utilization", math.nan, "above 0 and at most 1"),
    ("decode_steps", 5, "list or tuple"),
    ("decode_steps", "1", "list or tuple"),
    ("decode_steps", (1, 2.5), "a value in decode_steps = 2.5"),
    ("prefill_tokens", (8.0, 16), "a value in prefill_tokens = 8.0"),
    ("prefill_tokens", (0, 16), "a value in prefill_tokens = 0"),
    ("prefill_tokens", 16, "list or tuple"),
    ("seed", 2**70, "from -9223372036854775808 to 9223372036854775807"),
    ("seed", 2**63, "leave it out for 0"),
    ("seed", 10**5000, "too long to show"),
    ("seed", 0.5, "leave it out for 0"),
    ("seed", None, "leave it out for 0"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_setting_is_named_before_anything_is_opened(monkeypatch, name, value, message):
    monkeypatch.setattr(llm_module, "open_model", None)
    with pytest.raises(InvalidParameter, match=message) as caught:
        LLM("no such model", load_format="dummy", **{name: value})
    assert name in str(caught.value)


def test_a_mesh_is_a_mesh(monkeypatch):
    monkeypatch.setattr(llm_module, "open_model", None)
    with pytest.raises(InvalidParameter, match="mesh = 'any'"):
        LLM("no such model", load_format="dummy", mesh="any")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"max_model_len": 2, "num_pages": 2, "max_num_seqs": 1, "max_num_batched_tokens": 1},
        {"memory_utilization": 1, "seed": -(2**63), "prefill_tokens": [16, 64]},
        {"memory_utilization": 1e-9, "seed": 2**63 - 1, "decode_steps": range(1, 5)},
    ],
)
def test_settings_at_their_bounds_are_taken(changes):
    assert verify_settings(**(DEFAULTS | changes)) is None
