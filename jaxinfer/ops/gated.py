"""Both products of a gated MLP and its activation as one kernel, where there is one for them."""

import jax
import jax.numpy as jnp

from jaxinfer.config import MlpSpec
from jaxinfer.ops.joined import InJoined, JoinedKernel
from jaxinfer.ops.linear import Kernel
from jaxinfer.ops.packed import PackedKernel, silu_gate_packed


def gate_in_product(
    spec: MlpSpec, x: jax.Array, gate_and_up: JoinedKernel | InJoined | Kernel
) -> jax.Array | None:
    """What ``activate_gate`` makes of the products of ``x [..., in]``, in x's dtype.

    ``gate_and_up``: what stands in the place of the gate's kernel. None where the kernels are not
    packed as one, or the spec asks for more than SiLU.
    """
    if not isinstance(gate_and_up, JoinedKernel):
        return None
    kernel, sizes = gate_and_up.kernel, gate_and_up.sizes
    if not isinstance(kernel, PackedKernel) or x.dtype != jnp.bfloat16:
        return None
    plain = MlpSpec(width=spec.width, activation="silu")
    panel_width = kernel.panels_njop.shape[2]
    if spec != plain or sizes != (spec.width, spec.width) or spec.width % panel_width:
        return None
    return silu_gate_packed(x, kernel)
