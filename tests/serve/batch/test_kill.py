"""The command is killed, interrupted and refused disk: the same command goes on, exactly."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serve.batch.house import (
    by_id,
    line,
    read_lines,
    requests,
    write_lines,
)

ROOT = Path(__file__).parents[3]
ENTRIES = [*requests(200), b"garbage", line("bad", stream=True), line("wrong", n=0)]


@pytest.fixture
def paths(tmp_path):
    return write_lines(tmp_path / "in.jsonl", ENTRIES), tmp_path / "out.jsonl"


def start(*words: object, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.serve.batch.child", *map(str, words)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """Exit status and what it said."""
    _, err = process.communicate(timeout=60)
    return process.returncode, err.decode()


def num_whole_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """What a run that nobody disturbs makes of the lines, by custom_id."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    status, err = finish(start(write_lines(folder / "in.jsonl", ENTRIES), folder / "out.jsonl"))
    assert status == 0, err
    results = by_id(read_lines(folder / "out.jsonl"))
    assert len(results) == len(ENTRIES)
    return results


def test_killed_at_any_moment_and_started_again_it_has_done_each_line_once(paths, uninterrupted):
    outputs = paths[1]
    rng = random.Random(0)
    # While a line is written: nothing of it, a part, all but its end, the whole line.
    for number, num_bytes in ((1, 0), (rng.randrange(1, 60), rng.randrange(1, 300)), (20, 10**6)):
        before = num_whole_lines(outputs)
        status, err = finish(start(*paths, DIE_AT=f"{number},{num_bytes}"))
        assert status == -signal.SIGKILL, err
        assert num_whole_lines(outputs) == before + number - (num_bytes < 10**6)
    # From outside, wherever it is by then.
    process = start(*paths)
    process.stdout.read(rng.randrange(1, 60))
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    status, err = finish(start(*paths))
    assert status == 0, err
    assert "203 of 203 done, 3 of them with an error" in err
    assert by_id(read_lines(outputs)) == uninterrupted


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_whole_lines_and_a_word_on_how_to_go_on(paths, signum, status):
    found, err = finish(start(*paths, STOP_AT=f"7,{int(signum)}"))
    assert found == status, err
    assert "interrupted; the same command goes on from there" in err
    assert "Traceback" not in err
    assert 7 <= len(by_id(read_lines(paths[1]))) < len(ENTRIES)


def test_a_full_disk_ends_it_with_whole_lines_and_a_word_on_how_to_go_on(paths, uninterrupted):
    inputs, outputs = paths
    command = f"ulimit -f 20; exec {sys.executable} -m tests.serve.batch.child {inputs} {outputs}"
    full = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert full.returncode == 1, full.stderr
    num_done = len(by_id(read_lines(outputs)))
    assert f"{num_done} of 203 done" in full.stderr
    assert "File too large" in full.stderr
    assert "the same command goes on from there" in full.stderr
    assert "Traceback" not in full.stderr
    assert 0 < num_done < 203
    status, err = finish(start(*paths))
    assert status == 0, err
    assert by_id(read_lines(outputs)) == uninterrupted
