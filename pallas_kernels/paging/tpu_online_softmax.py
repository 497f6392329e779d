"""The online softmax (arXiv 1805.02867) of a TPU kernel, and the products before and after it.

Its state is one row of registers for each row of a matrix of queries. It differs from that of plain
XLA (``softmax.py``), which rounds its running maximum: here a row's blocks have one order.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.paging.tpu_registers import LANES

UNSEEN = -1e30
"""The logit of what a query must not see: finite, so that no difference of two is NaN."""


def scratch(rows: tuple[int, ...], value_width: int) -> dict[str, Any]:
    """The memory of an ``OnlineSoftmax``.

    ``rows``: those of a block of queries, behind the heads that have matrices of their own.
    """
    return {
        "top": pltpu.VMEM((*rows, LANES), jnp.float32),
        "total": pltpu.VMEM((*rows, LANES), jnp.float32),
        "sums": pltpu.VMEM((*rows, value_width), jnp.float32),
    }


@dataclass(frozen=True, kw_only=True)
class OnlineSoftmax:
    """The largest logit so far (``top``), and what is relative to it: the sum of the weights
    (``total``) and of the weighted values (``sums``). ``top`` and ``total`` are the same in all
    lanes."""

    top: Any
    total: Any
    sums: Any

    def begin(self) -> None:
        self.sums[...] = jnp.zeros_like(self.sums)
        self.top[...] = jnp.full_like(self.top, UNSEEN)
        self.total[...] = jnp.zeros_like(self.total)

    def begin_with(self, sinks: Any) -> None:
        """After ``begin``: as if a logit had been seen, that of ``sinks``, whose value is 0.

        ``sinks [heads, rows, 128]`` are those of the first rows, and again of those that follow.
        """
        rows = sinks.shape[1]
        for first in range(0, self.top.shape[1], rows):
            self.top[:, first : first + rows, :] = sinks[...]
        self.total[...] = jnp.ones_like(self.total)

    def add(
        self, place: Any, logits: jax.Array, values: jax.Array, is_seen: jax.Array | None
    ) -> None:
        """Adds a block to the matrix of queries at ``place``; ``is_seen`` None: all of it."""
        if is_seen is not None:
            logits = jnp.where(is_seen, logits, UNSEEN)
        old_top = self.top[place]
        top = jnp.maximum(old_top, logits.max(axis=1, keepdims=True))
        weights = jnp.exp(logits - top[:, :1])
        if is_seen is not None:
            weights = jnp.where(is_seen, weights, 0.0)
        decay = jnp.exp(old_top - top)
        self.top[place] = top
        self.total[place] = decay * self.total[place] + weights.sum(axis=1, keepdims=True)
        added = multiply(weights.astype(values.dtype), values, 0)
        self.sums[place] = decay[:, :1] * self.sums[place] + added

    def average(self, place: Any) -> jax.Array:
        """Of the matrix of queries at ``place``; 0 where nothing was seen."""
        total = self.total[place][:, :1]
        return self.sums[place] / jnp.where(total > 0, total, 1.0)


def multiply(x: jax.Array, y: jax.Array, contracted: int) -> jax.Array:
    """``x @ y``, or ``x @ y.T`` for ``contracted = 1``, summed in float32."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        x,
        y,
        (((1,), (contracted,)), ((), ())),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
