"""The decoder's logits for whole sequences: all of them in one ragged step, in float32."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.batch import Ragged
from jaxinfer.cache import init_cache, layer_groups
from jaxinfer.models.loading import load_model
from jaxinfer.models.model import Model
from jaxinfer.shapes import Tree
from sharding import make_mesh
from tests.models.golden_case import GoldenCase

PAGE_SIZE, PAGES_PER_ROW = 8, 8


def logits(case: GoldenCase) -> list[np.ndarray]:
    """Float32 ``[T, V]`` for the tokens of each of the case's sequences."""
    model = load_model(case.source, mesh=make_mesh(), dtype="float32", max_len=case.max_len)
    return logits_of(model, [sequence.tokens for sequence in case.sequences])


def logits_of(model: Model, sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Float32 ``[T, V]`` for each sequence of at most 64 tokens."""
    lengths = [len(tokens) for tokens in sequences]
    tokens_T = np.concatenate(sequences).astype(np.int32)
    positions_T = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    forward = jax.jit(functools.partial(_forward, model))
    logits_TV = forward(model.params, tokens_T, positions_T, _ragged(lengths))
    return np.split(np.asarray(logits_TV), np.cumsum(lengths[:-1]))


def _forward(
    model: Model, params: Tree, tokens_T: jax.Array, positions_T: jax.Array, ragged: Ragged
) -> jax.Array:
    config, num_rows = model.config, ragged.kv_lens_S.shape[0]
    page_table_SM = 1 + jnp.arange(num_rows * PAGES_PER_ROW, dtype=jnp.int32)
    page_table_SM = page_table_SM.reshape(num_rows, PAGES_PER_ROW)
    num_groups = len(layer_groups(config))
    num_pages = (1 + num_rows * PAGES_PER_ROW,) * num_groups
    cache = init_cache(config, num_pages, PAGE_SIZE, jnp.float32)
    decoder = model.merge(params)
    tables = (page_table_SM,) * num_groups
    hidden_TD, _ = decoder(tokens_T, positions_T, cache, tables, ragged)
    return decoder.logits(hidden_TD)


def _ragged(lengths: list[int]) -> Ragged:
    """Rows that have nothing cached."""
    num_rows = len(lengths)
    return Ragged(
        kv_lens_S=jnp.asarray(lengths, jnp.int32),
        cu_q_lens_S1=jnp.asarray(np.cumsum([0, *lengths]), jnp.int32),
        distribution_3=jnp.asarray([0, num_rows, num_rows], jnp.int32),
    )
