"""Offline inference: ``LLM`` turns lists of prompts into lists of outputs, over the engine."""

from jaxinfer.llm.llm import LLM
from jaxinfer.llm.score import Score
from jaxinfer.llm.stream import RequestStream

__all__ = ["LLM", "RequestStream", "Score"]
