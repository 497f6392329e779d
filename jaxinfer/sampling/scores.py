"""Log-probabilities, ranks and the best alternatives, from raw logits."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxinfer.sampling.blocks import reduce_blocks, top
from jaxinfer.sampling_params import RequestLimits

MAX_LOGPROBS = RequestLimits.max_logprobs


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Scores:
    """How probable one token a row is, and which A were the most probable.

    Attributes:
        logprob_R: float32, natural logarithm.
        rank_R: int32; 1 is the best: one more than the tokens with a larger logit.
        top_ids_RA: int32, best first; equal ones by id.
        top_logprobs_RA: float32; ``-inf`` where the vocabulary has fewer than A tokens.
    """

    logprob_R: jax.Array
    rank_R: jax.Array
    top_ids_RA: jax.Array
    top_logprobs_RA: jax.Array


def score(
    logits_RV: jax.Array, targets_R: jax.Array, *, max_logprobs: int = MAX_LOGPROBS
) -> Scores:
    """Scores of the tokens ``targets_R`` (int32) under float32 logits of a fixed number of rows."""
    max_R = jnp.max(reduce_blocks(logits_RV, jnp.max), axis=-1)
    mass_R = jnp.sum(reduce_blocks(jnp.exp(logits_RV - max_R[:, None]), jnp.sum), axis=-1)
    log_mass_R = max_R + jnp.log(mass_R)
    target_R1 = jnp.take_along_axis(logits_RV, targets_R[:, None], axis=1)
    is_better_RV = logits_RV > target_R1
    top_RA, top_ids_RA = top(logits_RV, max_logprobs)
    return Scores(
        logprob_R=target_R1[:, 0] - log_mass_R,
        rank_R=1 + jnp.sum(is_better_RV.astype(jnp.int32), axis=-1),
        top_ids_RA=top_ids_RA,
        top_logprobs_RA=top_RA - log_mass_R[:, None],
    )


def no_scores(num_rows: int, max_logprobs: int) -> Scores:
    """All zero: what rows hold that were not scored."""
    return Scores(
        logprob_R=jnp.zeros((num_rows,), jnp.float32),
        rank_R=jnp.zeros((num_rows,), jnp.int32),
        top_ids_RA=jnp.zeros((num_rows, max_logprobs), jnp.int32),
        top_logprobs_RA=jnp.zeros((num_rows, max_logprobs), jnp.float32),
    )
