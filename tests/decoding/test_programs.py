"""The table of compiled programs."""

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.decoding.programs import ProgramShapes, ProgramTable
from jaxinfer.decoding.slots import init_slots
from jaxinfer.sampling.processors import changes_logits
from tests.e2e.tiny import tiny_model


@dataclass
class Program:
    """One whose memory the compiler analysed, or did not."""

    temporary: int | None

    def memory_analysis(self) -> SimpleNamespace | None:
        return self.temporary and SimpleNamespace(temp_size_in_bytes=self.temporary)


def table_of(**changed: Any) -> ProgramTable:
    shapes: dict[str, Any] = {
        "num_slots": 2,
        "pages_per_sequence": 2,
        "page_size": 8,
        "num_pages": (3,),
        "kv_dtype": "float32",
        "prefill_tokens": (8,),
    }
    return ProgramTable(tiny_model((None,)), ProgramShapes(**shapes | changed))


def test_programs_without_a_memory_analysis_add_no_temporaries() -> None:
    table = table_of()
    without_programs = table.temporary_bytes()
    table._compiled["decode/1"] = Program(None)
    assert table.temporary_bytes() == without_programs
    table._compiled |= {"copy": Program(300), "admit": Program(200)}
    assert table.temporary_bytes() == without_programs + 300


@pytest.mark.parametrize(
    "changed",
    [{"score_rows": 4, "decode_steps": (1, 2)}, {"copies": 0, "num_slots": 3, "decode_rows": (2,)}],
)
def test_the_largest_programs_have_the_largest_temporaries(changed: dict[str, Any]) -> None:
    programs = table_of(**changed)
    programs.compile()

    def most(names: tuple[str, ...]) -> int:
        return max(programs[name].memory_analysis().temp_size_in_bytes for name in names)

    assert most(programs.largest) == most(programs.names)


@pytest.mark.parametrize("vocab_size", [64, 50])
def test_a_step_in_which_every_token_is_allowed_changes_no_logits(vocab_size: int) -> None:
    programs = table_of()
    config = replace(programs.model.config, vocab_size=vocab_size)
    programs = ProgramTable(replace(programs.model, config=config), programs.shapes)
    state = init_slots(2, vocab_size).sampling
    assert not np.asarray(changes_logits(state, jnp.asarray(programs.unrestricted()))).any()
