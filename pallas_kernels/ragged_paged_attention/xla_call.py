"""What both parts of the plain XLA form share: the queries and pages of a call, and how they read
them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.paging import softmax
from pallas_kernels.paging.options import Options
from pallas_kernels.paging.pool import take_pages, to_float32
from pallas_kernels.paging.rows import Rows
from pallas_kernels.paging.softmax import Softmax
from pallas_kernels.ragged_paged_attention.pages import KVPages


class Call(NamedTuple):
    """The arguments of a call, with one axis for kv heads and one for the query heads of each."""

    q_TKGH: jax.Array
    pages: KVPages
    rows: Rows
    sinks_KG: jax.Array | None
    k_scale_K: jax.Array | None
    v_scale_K: jax.Array | None
    options: Options

    def begin(self, before: tuple[int, ...], after: tuple[int, ...]) -> Softmax:
        """An empty ``[*before, K, G, *after]`` softmax, with the sinks in it if there are any."""
        num_kv_heads, group_size, head_dim = self.q_TKGH.shape[1:]
        sinks = self.sinks_KG
        if sinks is not None:
            ones = ((1,) * len(before), (1,) * len(after))
            sinks = sinks.reshape(*ones[0], num_kv_heads, group_size, *ones[1])
        return softmax.begin((*before, num_kv_heads, group_size, *after), head_dim, sinks)

    def scaled(self, q_xKGH: jax.Array) -> jax.Array:
        """Float32 queries with the scale of the logits, and that of the stored keys, in them."""
        q_xKGH = q_xKGH.astype(jnp.float32) * jnp.float32(self.options.scale)
        if self.k_scale_K is None:
            return q_xKGH
        return q_xKGH * self.k_scale_K.astype(jnp.float32)[None, :, None, None]

    def logits(self, product: str, q: jax.Array, keys: jax.Array) -> jax.Array:
        """The ``product``, an einsum, of scaled queries and keys, capped if the call says so."""
        logits = jnp.einsum(product, q, keys)
        if self.options.logit_softcap is None:
            return logits
        cap = jnp.float32(self.options.logit_softcap)
        return cap * jnp.tanh(logits / cap)

    def read_keys(self, id_x: jax.Array, sees_xp: jax.Array) -> jax.Array:
        """Unscaled float32 keys ``[*x, K, H, p]`` of pages ``id_x``; those not seen are 0.

        Their logits are masked in any case, but a gather that computes something is faster than a
        bare one.
        """
        keys = to_float32(take_pages(self.pages.keys_PKHp, id_x), self.pages.dtype)
        return jnp.where(sees_xp[..., None, None, :], keys, 0.0)

    def read_values(self, id_x: jax.Array, sees_xp: jax.Array) -> jax.Array:
        """Unscaled float32 values ``[*x, K, p, H]``; those not seen are 0, as 0 * NaN would not
        be."""
        values = to_float32(take_pages(self.pages.values_PKpH, id_x), self.pages.dtype)
        return jnp.where(sees_xp[..., None, :, None], values, 0.0)

    def first_seen(self, position: jax.Array) -> jax.Array:
        """The first position that a token at ``position`` sees."""
        if self.options.sliding_window is None:
            return jnp.zeros_like(position)
        return jnp.maximum(position - (self.options.sliding_window - 1), 0)
