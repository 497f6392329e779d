"""The feed-forward half of a block."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxinfer.config import MlpSpec
from jaxinfer.layers.linear import Linear, apply_each
from jaxinfer.layers.parameter import KeySource
from jaxinfer.ops.activation import activate, activate_gate
from jaxinfer.ops.gated import gate_in_product


class Mlp(nnx.Module):
    """``down(act(gate(x)) * up(x))`` (SwiGLU, GeGLU), or ``down(act(up(x)))`` when not gated."""

    def __init__(self, spec: MlpSpec, width: int, dtype: jnp.dtype, *, rngs: KeySource):
        self.spec = spec
        wide, narrow = ("embed", "mlp"), ("mlp", "embed")

        def widening() -> Linear:
            return Linear(width, spec.width, dtype, wide, bias=spec.bias, rngs=rngs)

        self.gate = widening() if spec.gated else None
        self.up = widening()
        self.down = Linear(spec.width, width, dtype, narrow, bias=spec.bias, rngs=rngs)

    def __call__(self, x_TD: jax.Array) -> jax.Array:
        """Float32 ``[T, D]``."""
        with jax.named_scope("mlp"):
            if self.gate is None:
                hidden_TF = activate(self.spec.activation, self.up(x_TD))
            else:
                hidden = gate_in_product(self.spec, x_TD, self.gate.kernel.get_value())
                if hidden is None:
                    gate_TF, up_TF = apply_each((self.gate, self.up), x_TD)
                    hidden = activate_gate(self.spec, gate_TF, up_TF)
                hidden_TF = hidden
            return self.down(hidden_TF.astype(x_TD.dtype))
