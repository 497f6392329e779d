"""What is known of a model before its weights are read: shapes, bytes, how far a context goes."""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp

from jaxinfer.cache import layer_groups, page_bytes
from jaxinfer.engine.limits import CacheGroup
from jaxinfer.errors import InvalidParameter
from jaxinfer.llm.opening import OpenModel
from jaxinfer.models.model import DTYPES, blank_model
from sharding import make_mesh


@dataclass(frozen=True, kw_only=True)
class GroupFacts:
    """Layers whose pages live equally long. Bytes are over all layers of the group."""

    kind: str
    window: int | None
    num_layers: int
    kv_bytes_per_token: int
    page_bytes: int


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
        weight_bytes: of the parameters once loaded, by dtype; ``dtype`` is what "auto" takes.
        stored_weights: numbers in the files by how they are stored there; empty without files.
        longest_context: tokens of one sequence whose pages fit beside the weights into
            ``memory_bytes``, at most ``max_len``; None where no memory was given.
    """

    model_type: str
    num_layers: int
    width: int
    vocab_size: int
    max_len: int
    num_params: int
    dtype: str
    weight_bytes: dict[str, int]
    stored_weights: dict[str, int]
    kv_dtype: str
    page_size: int
    groups: tuple[GroupFacts, ...]
    tokenizer: TokenizerFacts | None
    memory_bytes: int | None
    longest_context: int | None


def model_facts(
    opened: OpenModel,
    *,
    dtype: str = "auto",
    kv_dtype: str = "auto",
    page_size: int = 64,
    memory_bytes: int | None = None,
) -> ModelFacts:
    """Reads no weights and allocates nothing. ``kv_dtype`` "auto" is ``dtype``.

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
    num_params = blank_model(config, mesh=make_mesh()).num_params
    weight_bytes = {name: num_params * jnp.dtype(name).itemsize for name in DTYPES}
    groups = tuple(
        GroupFacts(
            kind=group.kind,
            window=group.window,
            num_layers=len(group.layers),
            kv_bytes_per_token=nbytes // page_size,
            page_bytes=nbytes,
        )
        for group, nbytes in zip(
            layer_groups(config), page_bytes(config, page_size, kv_dtype), strict=True
        )
    )
    longest = None
    if memory_bytes is not None:
        room = memory_bytes - weight_bytes[dtype]
        longest = _longest_context(groups, page_size, room, config.max_len)
    return ModelFacts(
        model_type=config.model_type,
        num_layers=len(config.layers),
        width=config.width,
        vocab_size=config.vocab_size,
        max_len=config.max_len,
        num_params=num_params,
        dtype=dtype,
        weight_bytes=weight_bytes,
        stored_weights=_stored_weights(opened),
        kv_dtype=kv_dtype,
        page_size=page_size,
        groups=groups,
        tokenizer=_tokenizer_facts(opened),
        memory_bytes=memory_bytes,
        longest_context=longest,
    )


def _longest_context(groups: Sequence[GroupFacts], page_size: int, room: int, max_len: int) -> int:
    """The most tokens of one sequence; one page of each pool, the first, is never used."""
    pools = [
        (CacheGroup(kind=group.kind, window=group.window, num_pages=2), group.page_bytes)  # type: ignore[arg-type]
        for group in groups
    ]

    def needed_bytes(num_tokens: int) -> int:
        return sum((pool.pages_for(num_tokens, page_size) + 1) * nbytes for pool, nbytes in pools)

    return max(0, bisect_right(range(max_len + 1), room, key=needed_bytes) - 1)


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
