"""The table of compiled programs."""

from dataclasses import dataclass
from types import SimpleNamespace

from jaxinfer.decoding.programs import ProgramShapes, ProgramTable
from tests.e2e.tiny import tiny_model


@dataclass
class Program:
    """One whose memory the compiler analysed, or did not."""

    temporary: int | None

    def memory_analysis(self) -> SimpleNamespace | None:
        return self.temporary and SimpleNamespace(temp_size_in_bytes=self.temporary)


def test_programs_without_a_memory_analysis_add_no_temporaries() -> None:
    shapes = ProgramShapes(
        num_slots=2,
        pages_per_sequence=2,
        page_size=8,
        num_pages=(3,),
        kv_dtype="float32",
        prefill_tokens=(8,),
    )
    table = ProgramTable(tiny_model((None,)), shapes)
    without_programs = table.temporary_bytes()
    table._compiled["decode/1"] = Program(None)
    assert table.temporary_bytes() == without_programs
    table._compiled |= {"copy": Program(300), "admit": Program(200)}
    assert table.temporary_bytes() == without_programs + 300
