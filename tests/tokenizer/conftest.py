"""Small tokenizers of each kind; nothing here is the work of the code under test."""

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from jaxinfer.tokenizer import Tokenizer, load_tokenizer

GOLDEN = Path(__file__).parent.parent / "golden" / "tokenizers"


def read_golden(name: str) -> dict:
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Many languages, code, digits, runs of spaces, emoji, special tokens."""
    return read_golden("smollm2")["texts"]


@pytest.fixture(scope="session")
def original(texts) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer of two hundred merges, trained by the tokenizers package."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=459,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.add_tokens([AddedToken("<think>", normalized=False)])
    return backend


@pytest.fixture(scope="session")
def byte_level_metadata(original) -> dict:
    """The same tokenizer as a GGUF file describes it."""
    vocabulary = original.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    merges = json.loads(original.to_str())["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 4) + [4],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


@pytest.fixture(scope="session")
def byte_level(byte_level_metadata) -> Tokenizer:
    return load_tokenizer("tiny.gguf", metadata=byte_level_metadata)


@pytest.fixture(scope="session")
def bpe_metadata() -> dict:
    """A SentencePiece BPE vocabulary with byte fallback, as a GGUF file has it."""
    return read_golden("sentencepiece_bpe")["metadata"] | {"tokenizer.ggml.model": "llama"}


@pytest.fixture(scope="session")
def sentencepiece(bpe_metadata) -> Tokenizer:
    return load_tokenizer("tiny.gguf", metadata=bpe_metadata)


@pytest.fixture(scope="session", params=["byte_level", "sentencepiece"])
def any_tokenizer(request) -> Tokenizer:
    return request.getfixturevalue(request.param)
