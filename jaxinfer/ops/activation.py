"""The pointwise functions between the matrix products of an MLP."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxinfer.config import Activation, MlpSpec


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


def activate_gate(spec: MlpSpec, gate: jax.Array, up: jax.Array) -> jax.Array:
    """What a gated MLP of this spec makes of its two products, in their dtype."""
    if spec.limit is not None:
        limit = jnp.asarray(spec.limit, gate.dtype)
        gate, up = jnp.minimum(gate, limit), jnp.clip(up, -limit, limit)
    if spec.swish_beta == 1.0:
        hidden = activate(spec.activation, gate)
    else:
        hidden = gate * jax.nn.sigmoid(gate * jnp.asarray(spec.swish_beta, gate.dtype))
    return hidden * (up if spec.up_offset == 0.0 else up + jnp.asarray(spec.up_offset, up.dtype))
