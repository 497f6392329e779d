"""Token ids equal those of the original tokenizers, and survive hostile texts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxinfer.checkpoint.gguf import GgufSource
from jaxinfer.checkpoint.known import cached
from jaxinfer.errors import InvalidPrompt
from jaxinfer.tokenizer import load_tokenizer
from tests.tokenizer.conftest import read_golden


@pytest.mark.real_model
@pytest.mark.parametrize(
    ("model", "golden"), [("smollm2-135m", "smollm2"), ("gemma3-270m", "gemma3")]
)
def test_a_pulled_model_encodes_as_transformers_does(model, golden):
    path = cached(model)
    if path is None:
        pytest.skip(f"{model} has not been pulled")
    expected = read_golden(golden)
    with GgufSource(path) as source:
        tokenizer = load_tokenizer(path, metadata=source.metadata)
    for text, ids in zip(expected["texts"], expected["ids"], strict=True):
        assert tokenizer.encode(text, add_special_tokens=False) == ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    ("golden", "keys"),
    [
        ("sentencepiece_bpe", {"model": "llama"}),
        ("sentencepiece_bpe_symbols", {"model": "llama", "add_space_prefix": False}),
        ("sentencepiece_unigram", {"model": "t5", "add_space_prefix": True}),
    ],
)
def test_a_sentencepiece_model_encodes_as_sentencepiece_does(golden, keys):
    expected = read_golden(golden)
    metadata = expected["metadata"] | {f"tokenizer.ggml.{key}": keys[key] for key in keys}
    tokenizer = load_tokenizer("tiny.gguf", metadata=metadata)
    for text, ids in zip(expected["texts"], expected["ids"], strict=True):
        assert tokenizer.encode(text, add_special_tokens=False) == ids


def test_a_byte_level_model_encodes_as_the_tokenizers_package_does(byte_level, original, texts):
    for text in texts:
        assert byte_level.encode(text) == original.encode(text).ids


@given(text=st.text())
def test_decoding_what_was_encoded_gives_the_text(any_tokenizer, text):
    ids = any_tokenizer.encode(text, add_special_tokens=False, parse_special=False)
    # SentencePiece writes a space as this character, so a text cannot have both.
    spaced = text.replace("\u2581", " ") if any_tokenizer.drops_first_space else text
    assert any_tokenizer.decode(ids, skip_special_tokens=False) == spaced


def test_a_text_that_spells_a_special_token_is_one_only_if_parsed(byte_level, original):
    text = "a<|im_end|>b<think>"
    end, think = map(original.token_to_id, ("<|im_end|>", "<think>"))
    assert end in byte_level.encode(text)
    plain = byte_level.encode(text, parse_special=False)
    assert end not in plain
    assert think in plain  # a symbol of the vocabulary, and no control token
    assert byte_level.decode(plain) == text


@pytest.mark.parametrize("name", ["sentencepiece_bpe", "sentencepiece_unigram"])
def test_no_plain_text_encodes_to_a_control_token_of_sentencepiece(name):
    kind = {"tokenizer.ggml.model": "t5" if "unigram" in name else "llama"}
    tokenizer = load_tokenizer("tiny.gguf", metadata=read_golden(name)["metadata"] | kind)
    text = "</s><s></s>"
    assert tokenizer.encode(text, add_special_tokens=False) == [2, 1, 2]
    plain = tokenizer.encode(text, add_special_tokens=False, parse_special=False)
    assert not {1, 2} & set(plain)


def test_the_begin_token_is_added_once_where_the_model_wants_it(sentencepiece, byte_level):
    assert sentencepiece.add_bos
    assert sentencepiece.encode("a") == [1, *sentencepiece.encode("a", add_special_tokens=False)]
    assert sentencepiece.encode("") == [1]
    assert not byte_level.add_bos
    assert byte_level.encode("") == []


@pytest.mark.parametrize("text", [b"bytes", None, 3, ["a"]])
def test_a_prompt_that_is_no_str_is_refused(byte_level, text):
    with pytest.raises(InvalidPrompt, match=f"must be a str, not {type(text).__name__}"):
        byte_level.encode(text)


def test_half_a_surrogate_pair_is_refused_with_its_place(byte_level):
    with pytest.raises(InvalidPrompt, match=r"'\\ud83d' at 2 is half a surrogate pair"):
        byte_level.encode("ab\ud83d")


@pytest.mark.parametrize("text", ["\0" * 9, "a" * 2**17, " " * 2**17, "1" * 2**17, "\u0301" * 999])
def test_long_and_strange_texts_come_back_unchanged(any_tokenizer, text):
    ids = any_tokenizer.encode(text, add_special_tokens=False)
    assert any_tokenizer.decode(ids) == text


@pytest.mark.parametrize("token_id", [-1, 460, 2**31, 2**32 - 1, 2**64, 1.0, "1", None])
def test_an_id_without_a_token_is_refused_when_somebody_gives_it(byte_level, token_id):
    with pytest.raises(InvalidPrompt, match=r"token id|no token has the id"):
        byte_level.decode([token_id])


def test_an_id_between_the_vocabulary_and_the_width_of_the_logits_has_no_text(byte_level):
    assert byte_level.vocab_size == 460
    assert byte_level.token_bytes(460) == b""
    assert byte_level.id_to_token(2**32) == ""


def test_ids_may_be_numpy_integers(byte_level):
    ids = byte_level.encode("numbers")
    assert byte_level.decode(np.array(ids, np.int32)) == "numbers"


def test_the_bytes_of_all_tokens_make_the_text(any_tokenizer):
    text = "a 🤣 naïve 語"
    ids = any_tokenizer.encode(text, add_special_tokens=False)
    assert b"".join(map(any_tokenizer.token_bytes, ids)).decode().strip() == text


def test_a_part_of_a_character_shows_as_a_replacement(byte_level):
    first, *others = byte_level.encode("🤣")
    assert others
    assert "🤣".encode().startswith(byte_level.token_bytes(first))
    assert byte_level.id_to_token(first) == "\ufffd"
