"""A learned augmented residual layer, low-rank (LAuReL, arXiv 2411.07501)."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxinfer.config import LaurelSpec
from jaxinfer.layers.linear import Linear
from jaxinfer.layers.norm import Norm
from jaxinfer.layers.parameter import KeySource


class Laurel(nnx.Module):
    """``h + norm(up(down(h)))``."""

    def __init__(self, spec: LaurelSpec, width: int, dtype: jnp.dtype, *, rngs: KeySource):
        self.down = Linear(width, spec.rank, dtype, ("embed", None), rngs=rngs)
        self.up = Linear(spec.rank, width, dtype, (None, "embed"), rngs=rngs)
        self.norm = Norm(spec.norm, width, dtype, rngs=rngs)

    def __call__(self, h_TD: jax.Array) -> jax.Array:
        """Float32 ``[T, D]``."""
        with jax.named_scope("laurel"):
            low_TR = self.down(h_TD).astype(h_TD.dtype)
            branch_TD = self.norm(self.up(low_TR).astype(h_TD.dtype))
            return h_TD.astype(jnp.float32) + branch_TD.astype(jnp.float32)
