"""What is known of a model before its weights are read: shapes, bytes, how far a context goes."""

import math
from collections import Counter
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxinfer.errors import InvalidParameter
from jaxinfer.llm.kv_cost import (
    GroupFacts,
    group_facts,
    largest_batch,
    longest_context,
    sequence_bytes,
)
from jaxinfer.llm.opening import OpenModel
from jaxinfer.models.model import DTYPES, Model, blank_model
from sharding import make_mesh


@dataclass(frozen=True, kw_only=True)
class TokenizerFacts:
    """``vocab_size`` counts tokens that have a text; the model's logits may be wider."""

    vocab_size: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    adds_bos: bool
    has_chat_template: bool


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """A model in figures.

    Attributes:
        num_active_params: all parameters but those of the experts that a token does not go to.
            Embeddings count whole, as for DeepSeek-V3 and Qwen 3; gpt-oss is published without.
        weight_bytes: of the parameters once loaded, by dtype; ``dtype`` is what "auto" takes.
        stored_weights: numbers in the files by how they are stored there; empty without files.
        context: tokens of a sequence that ``sequence_bytes``, of its pages, and
            ``largest_batch`` are said for.
        longest_context: tokens of one sequence that an engine of one slot has pages for, beside
            the weights in ``memory_bytes``, at most ``max_len``; None where no memory was given.
        largest_batch: sequences of ``context`` tokens that an engine of as many slots has pages
            for there, likewise.
    """

    model_type: str
    num_layers: int
    width: int
    vocab_size: int
    max_len: int
    num_params: int
    num_active_params: int
    dtype: str
    weight_bytes: dict[str, int]
    stored_weights: dict[str, int]
    kv_dtype: str
    page_size: int
    groups: tuple[GroupFacts, ...]
    tokenizer: TokenizerFacts | None
    context: int
    sequence_bytes: int
    memory_bytes: int | None
    longest_context: int | None
    largest_batch: int | None


def model_facts(
    opened: OpenModel,
    *,
    dtype: str = "auto",
    kv_dtype: str = "auto",
    page_size: int = 64,
    memory_bytes: int | None = None,
    context: int | None = None,
) -> ModelFacts:
    """Reads no weights and allocates nothing. ``kv_dtype`` "auto" is ``dtype``; ``context`` None
    is the longest one.

    Raises:
        InvalidParameter: a dtype or a size that is not allowed.
    """
    config = opened.config
    dtype = config.dtype if dtype == "auto" else dtype
    kv_dtype = dtype if kv_dtype == "auto" else kv_dtype
    for name, value in (("dtype", dtype), ("kv_cache_dtype", kv_dtype)):
        if value not in DTYPES:
            raise InvalidParameter(f"{name} = {value!r} must be auto, {', '.join(DTYPES)}")
    if page_size < 1:
        raise InvalidParameter(f"page_size = {page_size} must be at least 1")
    context = config.max_len if context is None else context
    if not 1 <= context <= config.max_len:
        raise InvalidParameter(
            f"context = {context} must be between 1 and the {config.max_len} tokens that this"
            " model was made for"
        )
    blank = blank_model(config, mesh=make_mesh(), dtype="bfloat16")
    weight_bytes = {name: _bytes_in(blank, jnp.dtype(name)) for name in DTYPES}
    groups = group_facts(config, page_size, kv_dtype)
    longest = batch = None
    if memory_bytes is not None:
        room = memory_bytes - weight_bytes[dtype]
        longest = longest_context(config, groups, page_size, room)
        batch = largest_batch(config, groups, page_size, room, context)
    return ModelFacts(
        model_type=config.model_type,
        num_layers=len(config.layers),
        width=config.width,
        vocab_size=config.vocab_size,
        max_len=config.max_len,
        num_params=blank.num_params,
        num_active_params=blank.num_active_params,
        dtype=dtype,
        weight_bytes=weight_bytes,
        stored_weights=_stored_weights(opened),
        kv_dtype=kv_dtype,
        page_size=page_size,
        groups=groups,
        tokenizer=_tokenizer_facts(opened),
        context=context,
        sequence_bytes=sequence_bytes(groups, page_size, context),
        memory_bytes=memory_bytes,
        longest_context=longest,
        largest_batch=batch,
    )


def _bytes_in(blank: Model, dtype: jnp.dtype) -> int:
    """The bytes of a blank model's parameters in another dtype than its own; some have theirs."""
    return sum(
        leaf.size * (dtype if leaf.dtype == blank.dtype else leaf.dtype).itemsize
        for leaf in jax.tree.leaves(blank.params)
    )


def _stored_weights(opened: OpenModel) -> dict[str, int]:
    stored: Counter[str] = Counter()
    for info in opened.source.tensors.values() if opened.source is not None else ():
        stored[info.storage] += math.prod(info.shape)
    return dict(stored.most_common())


def _tokenizer_facts(opened: OpenModel) -> TokenizerFacts | None:
    tokenizer = opened.tokenizer
    if tokenizer is None:
        return None
    return TokenizerFacts(
        vocab_size=tokenizer.vocab_size,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_ids=tokenizer.eos_token_ids,
        adds_bos=tokenizer.add_bos,
        has_chat_template=tokenizer.chat_template is not None,
    )
