"""The table of hostile inputs in README: each row names tests that are there."""

import re
from pathlib import Path

import pytest

import serve

README = Path(serve.__file__).with_name("README.md")
TESTS = Path(__file__).parents[2]
#: As README abbreviates them.
SHORT = {
    "R": "hostile/test_requests.py",
    "B": "hostile/test_bytes.py",
    "L": "hostile/test_lifetimes.py",
    "H": "hostile/test_http.py",
}


def rows() -> list[list[str]]:
    section = README.read_text().split("## What it survives", 1)[1]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    assert lines[0] == "| input | answer | test |"
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def test_readme_says_what_the_letters_stand_for():
    text = " ".join(README.read_text().split())
    for letter, path in SHORT.items():
        assert f"{letter} is `{path}`" in text or f"{letter} `{path}`" in text


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:60])
def test_each_row_names_tests_that_are_there(row):
    _input, _answer, tests = row
    for named in tests.split(", "):
        path = SHORT.get(named) or named.strip("`")
        found = TESTS / path.removeprefix("tests/") if "tests/" in path else TESTS / "serve" / path
        files = [found] if found.is_file() else sorted(found.glob("test_*.py"))
        assert files, named
        assert any(
            re.search(r"^(async )?def test_|^Test\w+ = ", file.read_text(), re.M) for file in files
        )
