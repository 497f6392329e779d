"""A tokenizer from the metadata of a GGUF file, as llama.cpp's converter writes it.

GGUF keeps the vocabulary and little else. What ``tokenizer.json`` would say about it (how text is
cut into words, how it is normalised) follows from ``tokenizer.ggml.model`` and ``.pre``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers

from jaxinfer.errors import TokenizerError
from jaxinfer.tokenizer.gguf_vocabulary import GGUFVocabulary, TokenType
from jaxinfer.tokenizer.splits import split_named
from jaxinfer.tokenizer.tokenizer import Tokenizer, frame_texts

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""What SentencePiece writes for a space."""


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """Builds the tokenizer that the metadata of a GGUF file describes.

    Args:
        metadata: the file's keys and values; arrays may be lists or NumPy arrays.

    Raises:
        TokenizerError: keys that are missing or contradict each other, or a kind that is not known.
    """
    vocabulary = GGUFVocabulary(metadata)
    if vocabulary.model not in _BUILDERS:
        raise TokenizerError(
            f"unknown tokenizer.ggml.model {vocabulary.model!r}; known: {', '.join(_BUILDERS)}"
        )
    try:
        backend = _BUILDERS[vocabulary.model](vocabulary)
    except TokenizerError:
        raise
    except Exception as error:  # the library raises nothing more specific
        raise TokenizerError(f"the vocabulary contradicts itself: {error}") from error
    backend.add_special_tokens(vocabulary.added(TokenType.UNKNOWN, TokenType.CONTROL, special=True))
    backend.add_tokens(vocabulary.added(TokenType.USER_DEFINED, special=False))
    return Tokenizer(
        backend,
        vocab_size=len(vocabulary.tokens),
        bos_token_id=vocabulary.special("bos"),
        eos_token_ids=vocabulary.end_tokens(),
        chat_templates=vocabulary.chat_templates(),
        template_variables=vocabulary.template_variables(),
    )


def _byte_level_bpe(vocabulary: GGUFVocabulary) -> tokenizers.Tokenizer:
    """GPT-2's kind: merges over the bytes of words."""
    split = split_named(vocabulary.text("pre", "default"))
    merges = [_merge(line) for line in vocabulary.texts("merges")]
    backend = tokenizers.Tokenizer(
        models.BPE(vocabulary.ids, merges, ignore_merges=split.ignore_merges)
    )
    if split.is_nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = split.pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    frame_texts(
        backend,
        bos_token_id=vocabulary.framing("bos", default=split.add_bos),
        eos_token_id=vocabulary.framing("eos", default=False),
    )
    return backend


def _merge(line: str) -> tuple[str, str]:
    left, space, right = line.partition(" ")
    if not (left and space and right):
        raise TokenizerError(f"tokenizer.ggml.merges has {line!r}; expected two tokens")
    return left, right


def _sentencepiece_bpe(vocabulary: GGUFVocabulary) -> tokenizers.Tokenizer:
    """Llama's and Gemma's kind: the two neighbours whose union has the best score merge first."""
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocabulary.ids,
            _merges_by_score(vocabulary),
            unk_token=vocabulary.template_variables().get("unk_token"),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    _mark_spaces(backend, has_prefix=vocabulary.flag("add_space_prefix", default=True))
    frame_texts(
        backend,
        bos_token_id=vocabulary.framing("bos", default=True),
        eos_token_id=vocabulary.framing("eos", default=False),
    )
    return backend


def _merges_by_score(vocabulary: GGUFVocabulary) -> list[tuple[str, str]]:
    """Every way to make a token out of two others, the token with the best score first.

    SentencePiece ranks a merge by its result alone, so all pairs that make a token have its rank.
    Only normal tokens merge: the others stand for themselves.
    """
    scores = vocabulary.numbers("scores")
    normal = frozenset(vocabulary.of_type(TokenType.NORMAL))
    ranked = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)
    results = [token for token in map(vocabulary.tokens.__getitem__, ranked) if token in normal]
    return [
        (left, right)
        for token in results
        for border in range(1, len(token))
        if (left := token[:border]) in normal and (right := token[border:]) in normal
    ]


def _sentencepiece_unigram(vocabulary: GGUFVocabulary) -> tokenizers.Tokenizer:
    """T5's kind: the most probable sequence of tokens."""
    scored = list(zip(vocabulary.tokens, map(float, vocabulary.numbers("scores")), strict=True))
    backend = tokenizers.Tokenizer(
        models.Unigram(
            scored,
            vocabulary.special("unknown"),
            bool(vocabulary.of_type(TokenType.BYTE)),
        )
    )
    steps: list[normalizers.Normalizer] = []
    if charsmap := vocabulary.array("precompiled_charsmap"):
        steps.append(normalizers.Precompiled(bytes(byte & 0xFF for byte in charsmap)))
    if vocabulary.flag("remove_extra_whitespaces", default=False):
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    has_prefix = vocabulary.flag("add_space_prefix", default=False)
    _mark_spaces(backend, has_prefix=has_prefix, after=steps)
    frame_texts(
        backend,
        bos_token_id=vocabulary.framing("bos", default=False),
        eos_token_id=vocabulary.framing("eos", default=True),
    )
    return backend


def _mark_spaces(
    backend: tokenizers.Tokenizer,
    *,
    has_prefix: bool,
    after: Sequence[normalizers.Normalizer] = (),
) -> None:
    """Lets a mark stand for each space, and one more before the text, as SentencePiece does.

    Special tokens cut a text; each part gets the mark, as in Llama's ``tokenizer.json``.
    """
    prefix = [normalizers.Prepend(_SPACE)] if has_prefix else []
    backend.normalizer = normalizers.Sequence([*after, *prefix, normalizers.Replace(" ", _SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if has_prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )


_BUILDERS = {
    "gpt2": _byte_level_bpe,
    "llama": _sentencepiece_bpe,
    "t5": _sentencepiece_unigram,
}
