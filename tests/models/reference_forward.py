"""The decoder's logits for the prompts of a golden case: both in one ragged step, in float32."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.batch import Ragged
from jaxinfer.cache import init_cache, layer_groups
from jaxinfer.models.loading import Model, load_model
from sharding import make_mesh
from tests.models.dict_source import GoldenCase

PAGE_SIZE, PAGES_PER_ROW = 8, 8


def logits(case: GoldenCase) -> list[np.ndarray]:
    """Float32 ``[T, V]`` for the tokens of each of the case's sequences."""
    model = load_model(case.source, mesh=make_mesh(), dtype="float32", max_len=case.max_len)
    lengths = [len(sequence.tokens) for sequence in case.sequences]
    tokens_T = np.concatenate([sequence.tokens for sequence in case.sequences])
    positions_T = np.concatenate([np.arange(length) for length in lengths])
    logits_TV = jax.jit(_forward, static_argnums=0)(
        _Static(model), model.params, tokens_T, positions_T.astype(np.int32), _ragged(lengths)
    )
    return np.split(np.asarray(logits_TV), [lengths[0]])


class _Static:
    """The model as a static argument: equal to itself alone."""

    def __init__(self, model: Model):
        self.model = model


def _forward(
    static: _Static,
    params: dict,
    tokens_T: jax.Array,
    positions_T: jax.Array,
    ragged: Ragged,
) -> jax.Array:
    config, num_rows = static.model.config, ragged.kv_lens_S.shape[0]
    page_table_SM = 1 + jnp.arange(num_rows * PAGES_PER_ROW, dtype=jnp.int32)
    page_table_SM = page_table_SM.reshape(num_rows, PAGES_PER_ROW)
    num_groups = len(layer_groups(config))
    num_pages = (1 + num_rows * PAGES_PER_ROW,) * num_groups
    cache = init_cache(config, num_pages, PAGE_SIZE, jnp.float32)
    decoder = static.model.merge(params)
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
