"""A tokenizer from a Hugging Face directory: ``tokenizer.json`` and the small files beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers

from jaxinfer.errors import TokenizerError
from jaxinfer.tokenizer.tokenizer import Tokenizer, frame_texts

_SPECIAL_NAMES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


def tokenizer_from_directory(directory: Path) -> Tokenizer:
    """Reads ``tokenizer.json``; the other files are optional.

    ``tokenizer_config.json`` and ``special_tokens_map.json`` name the special tokens,
    ``generation_config.json`` (or ``config.json``) more tokens that end a turn, and the chat
    template stands in ``chat_template.jinja``, ``chat_template.json`` or the configuration.

    Raises:
        TokenizerError: no ``tokenizer.json``, or a file that cannot be read.
    """
    file = directory / "tokenizer.json"
    if not file.is_file():
        raise TokenizerError(
            f"{directory} has no tokenizer.json; write one with transformers: "
            "AutoTokenizer.from_pretrained(directory).save_pretrained(directory)"
        )
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more specific
        raise TokenizerError(f"{file} cannot be read: {error}") from error
    config = _read_object(directory / "tokenizer_config.json")
    special = _special_tokens(_read_object(directory / "special_tokens_map.json") | config)
    ids = {name: backend.token_to_id(token) for name, token in special.items()}
    if "add_bos_token" in config or "add_eos_token" in config:
        frame_texts(
            backend,
            bos_token_id=ids.get("bos_token") if config.get("add_bos_token") else None,
            eos_token_id=ids.get("eos_token") if config.get("add_eos_token") else None,
        )
    return Tokenizer(
        backend,
        vocab_size=max(backend.get_vocab().values(), default=-1) + 1,
        bos_token_id=ids.get("bos_token"),
        eos_token_ids=_eos_token_ids(directory, ids.get("eos_token")),
        special_ids=[token_id for token_id in ids.values() if token_id is not None],
        chat_templates=_chat_templates(directory, config),
        template_variables=special,
    )


def _read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one if there is no such file."""
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{file} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{file} must hold a JSON object, not {type(value).__name__}")
    return value


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """``bos_token`` and the like; each is written as a text or as an added token."""
    found = {}
    for name in (f"{name}_token" for name in _SPECIAL_NAMES):
        token = config.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            found[name] = token
    return found


def _eos_token_ids(directory: Path, eos_token_id: int | None) -> list[int]:
    for name in ("generation_config.json", "config.json"):
        ids = _read_object(directory / name).get("eos_token_id")
        if ids is not None:
            break
    ids = [eos_token_id, *ids] if isinstance(ids, list) else [eos_token_id, ids]
    return [token_id for token_id in ids if isinstance(token_id, int)]


def _chat_templates(directory: Path, config: dict[str, Any]) -> dict[str, str]:
    """The templates by name; a file of their own wins over the tokenizer's configuration."""
    templates = _named(config.get("chat_template"))
    templates |= _named(_read_object(directory / "chat_template.json").get("chat_template"))
    files = [directory / "chat_template.jinja"]
    files += sorted((directory / "additional_chat_templates").glob("*.jinja"))
    for file in filter(Path.is_file, files):
        name = "default" if file.stem == "chat_template" else file.stem
        try:
            templates[name] = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise TokenizerError(f"{file} is not UTF-8: {error}") from error
    return templates


def _named(template: Any) -> dict[str, str]:
    """One template, or a list of ``{"name": ..., "template": ...}``."""
    if isinstance(template, str):
        return {"default": template}
    if template is None:
        return {}
    try:
        return {str(entry["name"]): str(entry["template"]) for entry in template}
    except (TypeError, KeyError) as error:
        raise TokenizerError(
            f"chat_template is neither a text nor a list of named ones: {error}"
        ) from error
