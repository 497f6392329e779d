"""Wheels by hash, through the pip of the running interpreter and the index it is set up for."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from jaxinfer.errors import CapacityError, CorruptCheckpoint, ModelNotFound

#: Called with bytes done and bytes in all.
Progress = Callable[[int, int], None]

_POLL_SECONDS = 0.2
_SHOWN_LINES = 12


def download(pins: Sequence[str], work: Path, total_bytes: int, progress: Progress) -> Path:
    """Downloads wheels and returns the folder they are in; nothing is built, installed or run.

    Args:
        pins: lines of a requirements file, each with a ``--hash``.
        work: an existing folder; pip's own temporary files are put there too.
        total_bytes: of all wheels, for ``progress``.
        progress: called a few times a second.

    Raises:
        ModelNotFound: this interpreter has no pip, or pip found no index or no such wheels.
        CorruptCheckpoint: an index offered wheels of other hashes.
        CapacityError: no room on the disk.
    """
    if importlib.util.find_spec("pip") is None:
        raise ModelNotFound(
            f"{sys.executable} has no pip to fetch {', '.join(pins)} with; "
            "install it with `python -m ensurepip` (or `uv pip install pip`)"
        )
    wheels, scratch, requirements = work / "wheels", work / "scratch", work / "requirements.txt"
    wheels.mkdir()
    scratch.mkdir()
    requirements.write_text("\n".join(pins) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--require-hashes", "--no-input", "--disable-pip-version-check"]
    command += ["--progress-bar", "off", "-r", str(requirements), "-d", str(wheels)]
    log = work / "pip.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=os.environ | {"TMPDIR": str(scratch)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            _watch(process, (wheels, scratch), total_bytes, progress)
        finally:
            process.kill()
            process.wait()
    if process.returncode != 0:
        raise _error(pins, log.read_text(encoding="utf-8", errors="replace"))
    progress(total_bytes, total_bytes)
    return wheels


def _watch(
    process: subprocess.Popen, folders: Sequence[Path], total_bytes: int, progress: Progress
) -> None:
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_POLL_SECONDS)
            return
        progress(min(total_bytes, sum(map(_bytes_in, folders))), total_bytes)


def _bytes_in(folder: Path) -> int:
    """Bytes of all files below a folder, while pip makes and moves them."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.path.getsize(os.path.join(root, name))
    return total


def _error(pins: Sequence[str], log: str) -> Exception:
    names = ", ".join(pin.split()[0] for pin in pins)
    tail = "\n".join(log.strip().splitlines()[-_SHOWN_LINES:])
    if "DO NOT MATCH THE HASHES" in log:
        return CorruptCheckpoint(f"an index offers other files as {names}:\n{tail}")
    if "No space left on device" in log:
        return CapacityError(f"no room on the disk for {names}:\n{tail}")
    return ModelNotFound(f"pip cannot fetch {names}; offline, or an index without them?\n{tail}")


@contextlib.contextmanager
def tqdm_bar(name: str) -> Iterator[Progress]:
    """A progress callback that draws a bar on standard error."""
    from tqdm import tqdm

    with tqdm(desc=name, unit="B", unit_scale=True, file=sys.stderr) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
