"""The pointwise functions between the matrix products of an MLP."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxinfer.config import Activation


def _relu_squared(x: jax.Array) -> jax.Array:
    """ReLU² (arXiv 2109.08668)."""
    return jnp.square(jax.nn.relu(x))


ACTIVATIONS: dict[Activation, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "relu2": _relu_squared,
}


def activate(kind: Activation, x: jax.Array) -> jax.Array:
    """``act(x)`` in ``x``'s dtype."""
    return ACTIVATIONS[kind](x)
