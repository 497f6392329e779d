"""The file of results: what an ended process has left there is known, and only that."""

import json
import os
import resource
from contextlib import contextmanager

import pytest

from jaxinfer.errors import InvalidParameter
from serve.batch import ledger as ledger_module
from serve.batch.ledger import Ledger
from serve.batch.lines import key_of, read_line
from serve.batch.lock import FileInUse
from serve.batch.results import answered, refused
from serve.batch.source import Contents

IDS = ["a", "b", "c", "d"]


def result(custom_id: str, status: int = 200, text: str = "t") -> bytes:
    return answered(custom_id, status=status, body={"text": text}, request_id="r")


def contents_of(*custom_ids: str, bad: tuple[int, ...] = ()) -> Contents:
    numbers = {key_of(custom_id, 0): n for n, custom_id in enumerate(custom_ids, start=1)}
    return Contents(numbers | {number: number for number in bad})


CONTENTS = contents_of(*IDS, bad=(9,))


@contextmanager
def opened(path, contents=CONTENTS, **flags):
    with Ledger(str(path), **flags) as ledger:
        ledger.read(contents, "in.jsonl")
        ledger.begin()
        yield ledger


@contextmanager
def files_of_at_most(num_bytes: int):
    """The system refuses to let any file of this process grow further: EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_cut_off_anywhere_it_has_the_whole_lines_before_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger_module.os, "fsync", lambda fd: None)
    lines = [result("a"), refused(read_line(9, b"x")), result("b", status=400), result("ü" * 30)]
    contents = contents_of("a", "b", "ü" * 30, bad=(9,))
    keys = [key_of("a", 0), 9, key_of("b", 0), key_of("ü" * 30, 0)]
    whole = b"".join(lines)
    ends = [sum(map(len, lines[:n])) for n in range(len(lines) + 1)]
    path = tmp_path / "out.jsonl"
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        num_whole = sum(end <= size for end in ends) - 1
        with opened(path, contents) as ledger:
            assert ledger.done == set(keys[:num_whole])
            assert ledger.num_failed == sum(n in (1, 2) for n in range(num_whole))
            assert ledger.num_torn_bytes == size - ends[num_whole]
            for raw in lines[num_whole:]:
                ledger.append(raw)
        assert path.read_bytes() == whole


def test_nothing_is_changed_before_it_begins(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(result("a") + result("b", status=500) + result("c")[:-5])
    before = path.read_bytes()
    for flags in ({}, {"overwrite": True}, {"retry_errors": True}):
        with Ledger(str(path), **flags) as ledger:
            ledger.read(CONTENTS, "in.jsonl")
        assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"my notes", "line 1 is no line of results"),
        (b"my notes\nof years\n", "line 1 is no line of results"),
        (b"\n", "line 1 is no line of results"),
        (b"{}\n", "line 1 is no line of results"),
        (result("a") + b"\x00" * 50, "line 2 is no line of results"),
        (result("a") + b'{"id": "batch_req_1"}\n', "line 2 is no line of results"),
        (result("a") + b'{"id": "batch_req_1\xff"}\n', "line 2 is no line of results"),
        (b'{"id": "batch_req_' + b"[" * 100_000 + b"\n", "line 1 is no line of results"),
        (result("a") + result("x"), "line 2 answers custom_id 'x', which is not in in.jsonl"),
        (refused(read_line(8, b"x")), "line 1 answers line 8, which is not in in.jsonl"),
        (result("a") + result("a"), "line 2 answers custom_id 'a', which it has answered before"),
    ],
)
def test_a_file_of_something_else_is_left_as_it_is(tmp_path, content, words):
    path = tmp_path / "out.jsonl"
    path.write_bytes(content)
    with pytest.raises(InvalidParameter, match="--overwrite") as caught, opened(path):
        pass
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == content


def test_overwriting_forgets_whatever_was_there(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(b"my notes")
    with opened(path, overwrite=True) as ledger:
        assert ledger.done == set()
        ledger.append(result("a"))
    assert [json.loads(raw)["custom_id"] for raw in path.read_bytes().splitlines()] == ["a"]


def test_retrying_forgets_errors_alone(tmp_path):
    path = tmp_path / "out.jsonl"
    good = [result("a"), result("c")]
    path.write_bytes(
        good[0] + result("b", status=500) + refused(read_line(9, b"x")) + good[1] + b'{"id'
    )
    path.chmod(0o640)
    link = tmp_path / "link.jsonl"
    link.symlink_to(path)
    again = result("b")
    with opened(link, retry_errors=True) as ledger:
        assert ledger.done == {key_of("a", 0), key_of("c", 0)}
        assert ledger.num_failed == 0
        ledger.append(again)
        with pytest.raises(FileInUse):
            Ledger(str(path))
    assert path.read_bytes() == b"".join(good) + again
    assert path.stat().st_mode & 0o777 == 0o640
    assert link.is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["link.jsonl", "out.jsonl"]


def test_a_disk_too_full_to_leave_errors_out_loses_nothing(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(result("a") + result("b", status=500) + result("c"))
    before = path.read_bytes()
    with Ledger(str(path), retry_errors=True) as ledger:
        ledger.read(CONTENTS, "in.jsonl")
        with files_of_at_most(len(result("a")) + 7), pytest.raises(OSError, match="too large"):
            ledger.begin()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["out.jsonl"]


@pytest.mark.parametrize("room", [0, 1, 100])
def test_a_full_disk_leaves_whole_lines_and_the_next_run_goes_on(tmp_path, room):
    path = tmp_path / "out.jsonl"
    first, second = result("a"), result("b", text="long" * 100)
    with opened(path) as ledger:
        ledger.append(first)
        with files_of_at_most(len(first) + room), pytest.raises(OSError, match="too large"):
            ledger.append(second)
        assert path.read_bytes() == first
        ledger.append(second)
    assert path.read_bytes() == first + second


def test_a_part_that_cannot_be_taken_back_is_known_for_what_it_is(tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"
    first, second = result("a"), result("b", text="long" * 100)

    def refuse(fd, size):
        raise OSError(5, "Input/output error")

    with opened(path) as ledger:
        ledger.append(first)
        with monkeypatch.context() as patch, files_of_at_most(len(first) + 50):
            patch.setattr(ledger_module.os, "ftruncate", refuse)
            with pytest.raises(OSError, match="too large"):
                ledger.append(second)
    assert path.read_bytes() == first + second[:50]
    with opened(path) as ledger:
        assert ledger.num_torn_bytes == 50
        ledger.append(second)
    assert path.read_bytes() == first + second


def test_a_write_that_takes_a_part_is_gone_on_with(tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"
    write = os.pwrite
    monkeypatch.setattr(
        ledger_module.os, "pwrite", lambda fd, raw, offset: write(fd, raw[:7], offset)
    )
    with opened(path) as ledger:
        ledger.append(result("a", text="b" * 50))
        ledger.append(result("b"))
    assert [json.loads(raw)["custom_id"] for raw in path.read_bytes().splitlines()] == ["a", "b"]


def test_one_process_has_it_at_a_time(tmp_path):
    path = tmp_path / "out.jsonl"
    with (
        opened(path),
        pytest.raises(FileInUse, match=r"another process is writing to .*out\.jsonl"),
    ):
        Ledger(str(path))
    with opened(path):
        pass


def test_what_was_written_is_synced_once(tmp_path, monkeypatch):
    synced = []
    with opened(tmp_path / "out.jsonl") as ledger:
        monkeypatch.setattr(ledger_module.os, "fsync", synced.append)
        ledger.sync()
        assert synced == []
        ledger.append(result("a"))
        ledger.append(result("b"))
        ledger.sync()
        ledger.sync()
        assert len(synced) == 1


def test_a_file_that_was_deleted_meanwhile_is_said(tmp_path):
    path = tmp_path / "out.jsonl"
    with opened(path) as ledger:
        ledger.append(result("a"))
        path.unlink()
        with pytest.raises(FileNotFoundError, match="was deleted"):
            ledger.sync()


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", "/dev/null"):
        with pytest.raises(InvalidParameter, match="no regular file"):
            Ledger(str(path))
