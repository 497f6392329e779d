"""Text to token ids and back; see README.md."""

from jaxinfer.tokenizer.incremental import IncrementalDecoder
from jaxinfer.tokenizer.load import load_tokenizer
from jaxinfer.tokenizer.stops import StopMatcher
from jaxinfer.tokenizer.tokenizer import Tokenizer

__all__ = ["IncrementalDecoder", "StopMatcher", "Tokenizer", "load_tokenizer"]
