"""Kernels that multiply the same input, side by side in one matrix: one product instead of three.

Fewer products are fewer programs inside the program: less to compile, to launch and to wait for.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.ops.linear import Kernel, linear


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class JoinedKernel:
    """Kernels ``[in, out_i]`` as one ``[in, sum(sizes)]``; it stands in the place of the first."""

    kernel: Kernel
    sizes: tuple[int, ...] = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class InJoined:
    """Stands in the place of the other kernels of a ``JoinedKernel``."""


def join(kernels: list[jax.Array]) -> JoinedKernel:
    """The kernels side by side, in a copy; of ShapeDtypeStructs one."""
    first, sizes = kernels[0], tuple(kernel.shape[1] for kernel in kernels)
    if isinstance(first, jax.ShapeDtypeStruct):
        return JoinedKernel(first.update(shape=(first.shape[0], sum(sizes))), sizes)
    columns: jax.Array | np.ndarray
    if {device.platform for device in first.devices()} == {"cpu"}:  # no program to compile
        columns = np.concatenate([np.asarray(kernel) for kernel in kernels], axis=1)
    else:
        columns = jnp.concatenate(kernels, axis=1)
    return JoinedKernel(jax.device_put(columns, first.sharding), sizes)


def linear_joined(x: jax.Array, joined: JoinedKernel) -> list[jax.Array]:
    """Float32 ``[..., out_i]``: what ``linear`` gives with each of the kernels."""
    y = linear(x, joined.kernel)
    borders = [sum(joined.sizes[: i + 1]) for i in range(len(joined.sizes) - 1)]
    return jnp.split(y, borders, axis=-1)
