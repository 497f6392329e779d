"""Bad words as tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxinfer.errors import InvalidParameter
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from jaxinfer.sampling import BadWords


def read_bad_words(params: SamplingParams, tokenizer: Tokenizer | None) -> BadWords | None:
    """The bad words of a request in tokens, at the beginning of a word and within; None: no words.

    Raises:
        InvalidParameter: there are some, and no tokenizer to read them.
    """
    if not params.bad_words:
        return None
    if tokenizer is None:
        raise InvalidParameter("bad_words need a tokenizer, and this engine has none")
    # Here, because it brings jax along, which an engine without bad words does without.
    from jaxinfer.sampling.bad_words import BadWords

    spellings = [(word.strip(), f" {word.strip()}") for word in params.bad_words]
    sequences = [
        tuple(tokenizer.encode(text, add_special_tokens=False, parse_special=False))
        for pair in spellings
        for text in pair
    ]
    return BadWords(sorted(set(filter(None, sequences))))
