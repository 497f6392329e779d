"""The feed-forward half of a block as a mixture of experts."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from jaxinfer.config import MlpSpec, MoeSpec
from jaxinfer.errors import Unsupported
from jaxinfer.layers.linear import Linear
from jaxinfer.layers.mlp import Mlp
from jaxinfer.layers.norm import Norm, maybe_normed
from jaxinfer.layers.parameter import KeySource, fan_in_of_each, ones, parameter, zeros
from jaxinfer.ops.experts import ExpertWeights, apply_experts, route
from sharding import LogicalAxes


class Moe(nnx.Module):
    """A router, the experts it chooses from, and the MLP that all tokens share."""

    def __init__(self, spec: MoeSpec, width: int, dtype: jnp.dtype, *, rngs: KeySource):
        if dtype == jnp.float16:
            raise Unsupported(
                "dtype = float16: experts are multiplied in bfloat16 or float32; take one of them"
            )
        num_experts = spec.router.num_experts
        self.spec = spec
        axes, bias = ("embed", "experts"), spec.router.bias
        router_dtype = jnp.dtype("float32") if spec.router.float32 else dtype
        self.router = Linear(width, num_experts, router_dtype, axes, bias=bias, rngs=rngs)
        # Small differences between experts decide: kept in float32 whatever the model's dtype.
        self.correction = (
            parameter(rngs, (num_experts,), jnp.dtype("float32"), ("experts",), zeros)
            if spec.router.correction
            else None
        )
        self.expert_scale = (
            parameter(rngs, (num_experts,), dtype, ("experts",), ones)
            if spec.router.expert_scale
            else None
        )
        self.experts = Experts(num_experts, spec.expert, width, dtype, rngs=rngs)
        self.shared = Mlp(spec.shared, width, dtype, rngs=rngs) if spec.shared else None
        self.shared_gate = (
            Linear(width, 1, dtype, ("embed", None), rngs=rngs) if spec.shared_gate else None
        )

        def part_norm(has_part: bool = True) -> Norm | None:
            norm = spec.part_norm if has_part else None
            return None if norm is None else Norm(norm, width, dtype, rngs=rngs)

        self.router_norm = part_norm()
        self.expert_norm, self.expert_post_norm = part_norm(), part_norm()
        has_shared = spec.shared is not None
        self.shared_norm, self.shared_post_norm = part_norm(has_shared), part_norm(has_shared)

    def __call__(self, x_TD: jax.Array, is_live_T: jax.Array, mesh: Mesh) -> jax.Array:
        """Float32 ``[T, D]``; tokens that are not live go to no expert."""
        with jax.named_scope("moe"):
            correction_E = None if self.correction is None else self.correction.get_value()
            scale_E = None if self.expert_scale is None else self.expert_scale.get_value()
            logits_TE = self._logits(maybe_normed(self.router_norm, x_TD))
            routes = route(self.spec.router, logits_TE, correction_E, scale_E)
            params = self.experts.weights()
            out_TD = apply_experts(
                self.spec.expert,
                params,
                maybe_normed(self.expert_norm, x_TD),
                routes,
                is_live_T,
                mesh=mesh,
                weigh_input=self.spec.weigh_input,
            )
            out_TD = maybe_normed(self.expert_post_norm, out_TD)
            if self.shared is None:
                return out_TD
            shared_TD = self.shared(maybe_normed(self.shared_norm, x_TD))
            shared_TD = maybe_normed(self.shared_post_norm, shared_TD)
            if self.shared_gate is not None:
                shared_TD = shared_TD * jax.nn.sigmoid(self.shared_gate(x_TD))
            return out_TD + shared_TD

    def _logits(self, x_TD: jax.Array) -> jax.Array:
        """Float32 ``[T, E]``."""
        if not self.spec.router.float32:
            return self.router(x_TD)
        # Some units round float32 before they multiply unless they are asked not to.
        with jax.default_matmul_precision("highest"):
            return self.router(x_TD.astype(jnp.float32))


class Experts(nnx.Module):
    """The weights of all experts, stacked along their first axis."""

    def __init__(
        self, num_experts: int, spec: MlpSpec, width: int, dtype: jnp.dtype, *, rngs: KeySource
    ):
        def layer(size_in: int, size_out: int, axes: LogicalAxes) -> StackedLinear:
            shape = (num_experts, size_in, size_out)
            return StackedLinear(shape, dtype, axes, bias=spec.bias, rngs=rngs)

        wide, narrow = ("experts", "embed", "mlp"), ("experts", "mlp", "embed")
        self.gate = layer(width, spec.width, wide) if spec.gated else None
        self.up = layer(width, spec.width, wide)
        self.down = layer(spec.width, width, narrow)

    def weights(self) -> ExpertWeights:
        """All of them as the op takes them."""
        return ExpertWeights(
            gate_EDF=None if self.gate is None else self.gate.kernel.get_value(),
            up_EDF=self.up.kernel.get_value(),
            down_EFD=self.down.kernel.get_value(),
            gate_bias_EF=None if self.gate is None else self.gate.bias_value,
            up_bias_EF=self.up.bias_value,
            down_bias_ED=self.down.bias_value,
        )


class StackedLinear(nnx.Module):
    """A matrix ``[in, out]`` for each expert, and a bias where there is one."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        dtype: jnp.dtype,
        axes: LogicalAxes,
        *,
        bias: bool,
        rngs: KeySource,
    ):
        num_experts, _, size_out = shape
        bias_axes = (axes[0], axes[2])
        self.kernel = parameter(rngs, shape, dtype, axes, fan_in_of_each)
        self.bias = (
            parameter(rngs, (num_experts, size_out), dtype, bias_axes, zeros) if bias else None
        )

    @property
    def bias_value(self) -> jax.Array | None:
        return None if self.bias is None else self.bias.get_value()
