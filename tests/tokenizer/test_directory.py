"""A Hugging Face directory: tokenizer.json, and what the files beside it say."""

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models

from jaxinfer.errors import ModelNotFound, TokenizerError
from jaxinfer.tokenizer import load_tokenizer

MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def directory(tmp_path, original) -> Path:
    original.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def write(directory: Path, name: str, value: object) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    (directory / name).write_text(text, encoding="utf-8")


def test_a_directory_encodes_as_its_tokenizer_json(directory, original, texts):
    tokenizer = load_tokenizer(directory)
    assert tokenizer.vocab_size == 460
    for text in texts:
        ids = tokenizer.encode(text)
        assert ids == original.encode(text).ids
        assert tokenizer.decode(ids) == original.decode(ids)


def test_a_directory_and_a_gguf_file_of_one_model_agree(directory, byte_level, texts):
    tokenizer = load_tokenizer(directory)
    for text in texts:
        assert tokenizer.encode(text, parse_special=False) == byte_level.encode(
            text, parse_special=False
        )


def test_truncation_and_padding_of_a_training_run_are_switched_off(directory, original):
    backend = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    backend.enable_truncation(2)
    backend.enable_padding(length=99)
    backend.save(str(directory / "tokenizer.json"))
    text = "longer than two tokens"
    assert load_tokenizer(directory).encode(text) == original.encode(text).ids


def test_special_tokens_are_read_as_texts_and_as_objects(directory):
    write(directory, "special_tokens_map.json", {"eos_token": "<|endoftext|>", "pad_token": None})
    config = {"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>"}
    write(directory, "tokenizer_config.json", config)
    tokenizer = load_tokenizer(directory)
    assert tokenizer.bos_token_id == 1
    assert tokenizer.eos_token_ids == (2,)
    assert not tokenizer.add_bos


def test_generation_config_adds_the_tokens_that_end_a_turn(directory):
    write(directory, "tokenizer_config.json", {"eos_token": "<|im_end|>"})
    write(directory, "config.json", {"eos_token_id": 7})
    assert load_tokenizer(directory).eos_token_ids == (2, 7)
    write(directory, "generation_config.json", {"eos_token_id": [0, 2]})
    assert load_tokenizer(directory).eos_token_ids == (2, 0)


def test_the_configuration_may_add_the_begin_and_end_tokens(directory):
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "add_bos_token": True}
    write(directory, "tokenizer_config.json", config)
    tokenizer = load_tokenizer(directory)
    assert tokenizer.add_bos
    assert tokenizer.encode("") == [1]
    assert tokenizer.encode("", add_special_tokens=False) == []
    write(directory, "tokenizer_config.json", config | {"add_eos_token": True})
    assert load_tokenizer(directory).encode("") == [1, 2]


def test_chat_templates_come_from_all_three_places(directory):
    named = [{"name": "default", "template": "config"}, {"name": "rag", "template": "R"}]
    write(directory, "tokenizer_config.json", {"chat_template": named})
    assert load_tokenizer(directory).chat_template == "config"
    write(directory, "chat_template.json", {"chat_template": "json"})
    assert load_tokenizer(directory).chat_template == "json"
    write(directory, "chat_template.jinja", "jinja")
    (directory / "additional_chat_templates").mkdir()
    write(directory, "additional_chat_templates/tool_use.jinja", "tools")
    tokenizer = load_tokenizer(directory)
    assert tokenizer.chat_template == "jinja"
    assert tokenizer.apply_chat_template(MESSAGES, chat_template="rag") == "R"
    assert tokenizer.apply_chat_template(MESSAGES, tools=[{}]) == "tools"


@pytest.mark.parametrize(
    ("decoder", "expected"),
    [
        (decoders.Metaspace(), "a b"),
        (decoders.Metaspace(prepend_scheme="never"), " a b"),
        (decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()]), " a b"),
        (decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)]), "a b"),
    ],
)
def test_the_decoders_of_sentencepiece_models_are_understood(tmp_path, decoder, expected):
    backend = tokenizers.Tokenizer(models.BPE({"▁a": 0, "▁b": 1, "<unk>": 2}, []))
    backend.decoder = decoder
    backend.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).decode([0, 1]) == expected


@pytest.mark.parametrize(
    ("decoder", "reason"),
    [
        (None, "has no decoder"),
        (decoders.WordPiece(), "unknown decoder 'WordPiece'"),
        (decoders.Sequence([decoders.Strip("x", 2, 0)]), "strips more than the first space"),
        (decoders.Replace(tokenizers.Regex("a+"), ""), "replaces by pattern"),
    ],
)
def test_a_decoder_that_does_not_spell_bytes_is_refused(tmp_path, decoder, reason):
    backend = tokenizers.Tokenizer(models.BPE({"a": 0}, []))
    if decoder is not None:
        backend.decoder = decoder
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match=reason):
        load_tokenizer(tmp_path)


def test_a_missing_directory_or_tokenizer_says_what_to_do(tmp_path):
    with pytest.raises(ModelNotFound, match="nowhere is no directory"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json; write one with transformers"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (
            "tokenizer.json",
            '{"model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}',
            "read",
        ),
        ("tokenizer.json", "\x00\xff", "cannot be read"),
        ("tokenizer_config.json", "{", "is not JSON"),
        ("tokenizer_config.json", "[" * 100_000, "is not JSON"),
        ("tokenizer_config.json", "[]", "must hold a JSON object, not list"),
        ("tokenizer_config.json", '{"chat_template": [1]}', "neither a text nor a list"),
        ("generation_config.json", "null", "must hold a JSON object, not NoneType"),
    ],
)
def test_files_that_cannot_be_read_are_named(directory, name, content, reason):
    write(directory, name, content)
    with pytest.raises(TokenizerError, match=reason):
        load_tokenizer(directory)


@pytest.mark.parametrize("name", ["chat_template.jinja", "additional_chat_templates/rag.jinja"])
def test_a_chat_template_that_is_no_utf8_is_named(directory, name):
    (directory / "additional_chat_templates").mkdir()
    (directory / name).write_bytes(b"caf\xe9")
    with pytest.raises(TokenizerError, match=f"{name} is not UTF-8"):
        load_tokenizer(directory)
