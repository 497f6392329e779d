"""Alternating updates: several residual streams around blocks that compute one of them."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxinfer.config import AltUpSpec
from jaxinfer.layers.linear import Linear
from jaxinfer.layers.norm import Norm
from jaxinfer.layers.parameter import KeySource, parameter, zeros

_LEAST_MEAN_SQUARE = 1e-5


class AltUp(nnx.Module):
    """What surrounds one block: all streams predicted before it, all corrected after it."""

    def __init__(self, spec: AltUpSpec, width: int, dtype: jnp.dtype, *, rngs: KeySource):
        count = spec.num_streams
        self.spec, self.width = spec, width
        self.router_norm = Norm(spec.norm, width, dtype, rngs=rngs)
        self.router = Linear(width, count, dtype, ("embed", None), rngs=rngs)
        self.prediction = Linear(count, count * count, dtype, (None, None), rngs=rngs)
        self.correction = Linear(count, count, dtype, (None, None), rngs=rngs)
        # Checkpoints have it also where it is not used.
        self.out_scale = parameter(rngs, (width,), dtype, (None,), zeros)

    def predict(self, x_UTD: jax.Array) -> jax.Array:
        """``[U, T, D]``: each stream plus a mixture of all, as the active one says."""
        with jax.named_scope("altup_predict"):
            count = self.spec.num_streams
            coefficients = self.prediction(self._shares(x_UTD[self.spec.active]))
            mix_TUV = coefficients.reshape(-1, count, count)
            mixed_UTD = jnp.einsum("TUV,VTD->UTD", mix_TUV, x_UTD.astype(jnp.float32))
            return (x_UTD.astype(jnp.float32) + mixed_UTD).astype(x_UTD.dtype)

    def correct(self, predicted_UTD: jax.Array, out_TD: jax.Array) -> jax.Array:
        """``[U, T, D]``: each stream plus its share of how ``out`` differs from its prediction."""
        with jax.named_scope("altup_correct"):
            shares_TU = self.correction(self._shares(out_TD)) + jnp.float32(1.0)
            predicted_UTD = predicted_UTD.astype(jnp.float32)
            news_TD = out_TD.astype(jnp.float32) - predicted_UTD[self.spec.active]
            corrected_UTD = predicted_UTD + shares_TU.T[:, :, None] * news_TD[None]
            return corrected_UTD.astype(out_TD.dtype)

    def handed_on(self, corrected_UTD: jax.Array) -> jax.Array:
        """``[T, D]``: the active stream as the layer's own input is added to it."""
        x_TD = corrected_UTD[self.spec.active]
        if not self.spec.scaled_output:
            return x_TD
        return x_TD * self.out_scale.get_value().astype(x_TD.dtype)[None, :]

    def _shares(self, x_TD: jax.Array) -> jax.Array:
        """``[T, U]`` from -1 to 1, in the dtype of ``x``."""
        normed_TD = self.router_norm(x_TD) * jnp.asarray(1 / self.width, x_TD.dtype)
        return jnp.tanh(self.router(normed_TD)).astype(x_TD.dtype)


class AltUpEnds(nnx.Module):
    """The embedding as several streams, and the last layer's streams as one."""

    def __init__(self, spec: AltUpSpec, width: int, dtype: jnp.dtype, *, rngs: KeySource):
        def projections() -> nnx.List:
            axes = ("embed", None)
            others = range(1, spec.num_streams)
            return nnx.List(Linear(width, width, dtype, axes, rngs=rngs) for _ in others)

        self.first, self.last = projections(), projections()

    def spread(self, x_TD: jax.Array) -> jax.Array:
        """``[U, T, D]``: the embedding, and a projection of it for each other stream."""
        with jax.named_scope("altup_spread"):
            others = [_as_large_as(x_TD, project(x_TD)) for project in self.first]
            return jnp.stack([x_TD, *others])

    def merge(self, x_UTD: jax.Array) -> jax.Array:
        """``[T, D]``: the mean of the first stream and a projection of each other."""
        with jax.named_scope("altup_merge"):
            first_TD, *streams = x_UTD
            pairs = zip(self.last, streams, strict=True)
            others = [_as_large_as(first_TD, project(x_TD)) for project, x_TD in pairs]
            mean_TD = jnp.stack([first_TD, *others]).astype(jnp.float32).mean(axis=0)
            return mean_TD.astype(x_UTD.dtype)


def _as_large_as(model_TD: jax.Array, x_TD: jax.Array) -> jax.Array:
    """``x`` with the root mean square of ``model``, token by token, in the latter's dtype."""
    wanted_T1 = jnp.sqrt(_mean_square(model_TD))
    found_T1 = jnp.sqrt(jnp.maximum(_mean_square(x_TD), jnp.float32(_LEAST_MEAN_SQUARE)))
    return (x_TD.astype(jnp.float32) * (wanted_T1 / found_T1)).astype(model_TD.dtype)


def _mean_square(x_TD: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(x_TD.astype(jnp.float32)), axis=-1, keepdims=True)
