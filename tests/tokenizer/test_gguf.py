"""Every kind that GGUF names can be built, and metadata that lies is refused."""

import numpy as np
import pytest

from jaxinfer.errors import TokenizerError
from jaxinfer.tokenizer import load_tokenizer, splits

# Cut by each model's tokenizer.json: the digits, contractions and spaces tell the kinds apart.
TEXT = "I'Ll pay  1234 USD\n\n now."
WORDS = {
    "gpt-2": ["I", "'", "Ll", " pay", " ", " 1234", " USD", "\n\n", " now", "."],
    "smollm": ["I", "'", "Ll", " pay", "  ", "1", "2", "3", "4", " USD", "\n\n", " now", "."],
    "llama-bpe": ["I", "'Ll", " pay", " ", " ", "123", "4", " USD", "\n\n", " now", "."],
    "qwen2": ["I", "'Ll", " pay", " ", " ", "1", "2", "3", "4", " USD", "\n\n", " now", "."],
    "tekken": ["I", "'Ll", " pay", " ", " ", "1", "2", "3", "4", " USD", "\n\n", " now", "."],
    "gpt-4o": ["I'Ll", " pay", " ", " ", "123", "4", " USD", "\n\n", " now", "."],
    "falcon": ["I", "'", "Ll", " pay", " ", " ", "123", "4", " USD", "\n\n", " now", "."],
    "deepseek-llm": ["I", "'", "Ll", " pay", "  ", "1234", " USD", "\n", "\n", " now", "."],
}


@pytest.mark.parametrize("name", WORDS)
def test_a_pre_tokenizer_cuts_text_into_the_words_of_its_model(name):
    pieces = splits.split_named(name).pre_tokenizer().pre_tokenize_str(TEXT)
    assert [TEXT[start:end] for _, (start, end) in pieces] == WORDS[name]


@pytest.mark.parametrize("name", sorted(splits.NAMES))
def test_every_named_kind_builds_and_keeps_the_text(name, byte_level_metadata, texts):
    named = byte_level_metadata | {
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.add_bos_token": False,
    }
    tokenizer = load_tokenizer("tiny.gguf", metadata=named)
    text = "".join(text for text in texts if "e\u0301" not in text and "<" not in text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_arrays_may_be_numpy_arrays(bpe_metadata, sentencepiece):
    arrays = {"scores": np.float32, "token_type": np.int32}
    metadata = bpe_metadata | {
        f"tokenizer.ggml.{key}": np.array(bpe_metadata[f"tokenizer.ggml.{key}"], dtype)
        for key, dtype in arrays.items()
    }
    tokenizer = load_tokenizer("tiny.gguf", metadata=metadata)
    assert tokenizer.encode("the same text") == sentencepiece.encode("the same text")


def test_the_end_tokens_are_those_named_by_key_and_by_their_own_text(byte_level_metadata):
    metadata = byte_level_metadata | {"tokenizer.ggml.eot_token_id": 1}
    tokenizer = load_tokenizer("tiny.gguf", metadata=metadata)
    assert tokenizer.eos_token_ids == (2, 1, 0)
    assert tokenizer.bos_token_id == 1
    assert [tokenizer.is_special(token_id) for token_id in (0, 1, 2, 3, 459)] == [True] * 3 + [
        False
    ] * 2


def test_empty_tokens_get_names_of_their_own(byte_level_metadata):
    tokens = [*byte_level_metadata["tokenizer.ggml.tokens"], "", ""]
    types = [*byte_level_metadata["tokenizer.ggml.token_type"], 5, 5]
    more = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    tokenizer = load_tokenizer("tiny.gguf", metadata=byte_level_metadata | more)
    assert tokenizer.vocab_size == len(tokens)


def test_named_chat_templates_are_read(byte_level_metadata):
    named = {"tokenizer.chat_template": "D", "tokenizer.chat_template.rag": "R"}
    tokenizer = load_tokenizer("tiny.gguf", metadata=byte_level_metadata | named)
    messages = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(messages) == "D"
    assert tokenizer.apply_chat_template(messages, chat_template="rag") == "R"


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("model", None, "model must be a text, not None"),
        ("model", "rwkv", "unknown tokenizer.ggml.model 'rwkv'; known: gpt2, llama, t5"),
        ("pre", "made-up", "unknown pre-tokenizer 'made-up'; known: .*llama-bpe"),
        ("tokens", None, "tokens must be a list of texts"),
        ("tokens", ["a", 1], "tokens must be a list of texts"),
        ("tokens", ["a", "b", "a"], "must have 3 numbers|'a' twice"),
        ("token_type", [1], "token_type must have 460 numbers"),
        ("token_type", "1", "token_type must be a list of numbers"),
        ("merges", None, "merges must be a list of texts"),
        ("merges", ["ab"], "merges has 'ab'; expected two tokens"),
        ("merges", ["no such"], "contradicts itself"),
        ("bos_token_id", 460, "bos_token_id is 460, of 460 tokens"),
        ("eos_token_id", -1, "eos_token_id is -1, of 460 tokens"),
        ("eos_token_id", "2", "eos_token_id is '2', of 460 tokens"),
    ],
)
def test_metadata_that_lies_is_refused(byte_level_metadata, key, value, reason):
    metadata = byte_level_metadata | {f"tokenizer.ggml.{key}": value}
    with pytest.raises(TokenizerError, match=f"^hostile.gguf: .*{reason}"):
        load_tokenizer("hostile.gguf", metadata=metadata)


def test_a_token_that_is_there_twice_is_named(byte_level_metadata):
    tokens = [*byte_level_metadata["tokenizer.ggml.tokens"][:-1], "a"]
    with pytest.raises(TokenizerError, match="tokens has 'a' twice"):
        load_tokenizer("x.gguf", metadata=byte_level_metadata | {"tokenizer.ggml.tokens": tokens})


def test_a_begin_token_that_is_wanted_and_not_named_is_refused(byte_level_metadata):
    metadata = byte_level_metadata | {"tokenizer.ggml.add_bos_token": True}
    del metadata["tokenizer.ggml.bos_token_id"]
    with pytest.raises(TokenizerError, match="bos_token_id does not name"):
        load_tokenizer("x.gguf", metadata=metadata)


def test_a_charsmap_of_random_bytes_is_refused(bpe_metadata):
    keys = {"tokenizer.ggml.model": "t5", "tokenizer.ggml.precompiled_charsmap": [255] * 9}
    with pytest.raises(TokenizerError, match="contradicts itself"):
        load_tokenizer("x.gguf", metadata=bpe_metadata | keys)


def test_a_gguf_file_without_its_metadata_says_what_to_do():
    with pytest.raises(TokenizerError, match="pass metadata="):
        load_tokenizer("model.gguf")
