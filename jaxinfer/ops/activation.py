"""The pointwise functions between the matrix products of an MLP."""

import statistics
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
    if spec.sparsity:
        gate = keep_largest(gate, spec.sparsity)
    if spec.limit is not None:
        limit = jnp.asarray(spec.limit, gate.dtype)
        gate, up = jnp.minimum(gate, limit), jnp.clip(up, -limit, limit)
    if spec.swish_beta == 1.0:
        hidden = activate(spec.activation, gate)
    else:
        hidden = gate * jax.nn.sigmoid(gate * jnp.asarray(spec.swish_beta, gate.dtype))
    return hidden * (up if spec.up_offset == 0.0 else up + jnp.asarray(spec.up_offset, up.dtype))


def keep_largest(x_TF: jax.Array, sparsity: float) -> jax.Array:
    """``relu(x - (mean + std * z))`` of each row, ``z`` the quantile ``sparsity`` of a normal.

    About the share ``1 - sparsity`` of normally distributed numbers stays above 0 (Spark
    Transformer, arXiv 2506.06644).
    """
    with jax.named_scope("keep_largest"):
        z = jnp.float32(statistics.NormalDist().inv_cdf(sparsity))
        x32_TF = x_TF.astype(jnp.float32)
        mean_T1 = x32_TF.mean(axis=-1, keepdims=True)
        std_T1 = jnp.sqrt(jnp.mean(jnp.square(x32_TF - mean_T1), axis=-1, keepdims=True))
        return jax.nn.relu(x32_TF - (mean_T1 + std_T1 * z)).astype(x_TF.dtype)
