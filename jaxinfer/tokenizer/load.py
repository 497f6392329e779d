"""Finds the tokenizer of a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxinfer.errors import ModelNotFound, TokenizerError
from jaxinfer.tokenizer.directory import tokenizer_from_directory
from jaxinfer.tokenizer.gguf import tokenizer_from_gguf
from jaxinfer.tokenizer.tokenizer import Tokenizer


def load_tokenizer(path: Path | str, *, metadata: Mapping[str, Any] | None = None) -> Tokenizer:
    """The tokenizer of a model's directory, or of the metadata of a GGUF file.

    Args:
        path: a Hugging Face directory with ``tokenizer.json``, or the GGUF file.
        metadata: the keys and values of the GGUF file; ``path`` is then only named in errors.

    Raises:
        ModelNotFound: no such directory.
        TokenizerError: files that are missing or cannot be read, or a kind that is not known.
    """
    path = Path(path)
    if metadata is not None:
        try:
            return tokenizer_from_gguf(metadata)
        except TokenizerError as error:
            raise TokenizerError(f"{path}: {error}") from error
    if path.suffix == ".gguf":
        raise TokenizerError(f"{path}: a GGUF file's tokenizer is in its metadata; pass metadata=")
    if not path.is_dir():
        raise ModelNotFound(f"{path} is no directory")
    return tokenizer_from_directory(path)
