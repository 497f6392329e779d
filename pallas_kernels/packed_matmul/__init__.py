"""``packed_matmul``: a few or many rows times 16-bit weights that were packed for the CPU once.

XLA:CPU rearranges a plain matrix at every product, which for a few rows takes far longer than the
product. Packed, it is read as it lies: panels of columns, in which the numbers of two neighbouring
rows lie side by side, as the CPU multiplies them.
"""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import native
from pallas_kernels.dispatch import NoImplementation

#: Of vectors that a panel is wide.
VECTORS = 2


def refuse(shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> str | None:
    """Why weights ``[in, out]`` of this shape and dtype cannot be packed here, or None."""
    if reason := native.missing():
        return reason
    if jnp.dtype(dtype) != jnp.bfloat16:
        return f"the weights are {jnp.dtype(dtype).name}, not bfloat16"
    if len(shape) != 2 or shape[0] % 2 or 0 in shape:
        return f"the weights have shape {shape}: not a matrix with an even number of rows"
    return None


def panel_width() -> int:
    """Columns in a panel: it depends on the CPU that is here."""
    from pallas_kernels.native.machine import vector_unit

    unit = vector_unit()
    assert unit is not None
    return VECTORS * unit.lanes


def pack(weights: jax.Array, *, is_transposed: bool = False) -> jax.Array:
    """Bfloat16 weights ``[in, out]``, or ``[out, in]``, as panels ``[n, in / 2, o, 2]`` of ``o``
    columns; the last one is filled up with zeros. Of a ShapeDtypeStruct it gives one.

    Raises ``NoImplementation`` where ``refuse`` has a reason.
    """
    size_in, size_out = weights.shape[::-1] if is_transposed else weights.shape
    if reason := refuse((size_in, size_out), weights.dtype):
        raise NoImplementation(f"these weights cannot be packed: {reason}")
    width = panel_width()
    num_panels = -(-size_out // width)
    if isinstance(weights, jax.ShapeDtypeStruct):
        return weights.update(shape=(num_panels, size_in // 2, width, 2))
    # NumPy moves integers many times as fast as a dtype that it does not know.
    bits = np.asarray(weights).view(np.uint16)
    if filling := num_panels * width - size_out:
        bits = np.pad(bits, ((0, filling), (0, 0)) if is_transposed else ((0, 0), (0, filling)))
    pairs_njo: np.ndarray
    if is_transposed:
        pairs_noj = np.ascontiguousarray(bits).view(np.uint32).reshape(num_panels, width, -1)
        pairs_njo = pairs_noj.transpose(0, 2, 1)
    else:
        first, second = (bits[start::2].astype(np.uint32) for start in (0, 1))
        pairs_jno = (first | second << 16).reshape(-1, num_panels, width)
        pairs_njo = pairs_jno.transpose(1, 0, 2)
    panels_njop = np.ascontiguousarray(pairs_njo).view(weights.dtype)
    return jax.device_put(panels_njop.reshape(num_panels, -1, width, 2), weights.sharding)


def unpack(panels_njop: jax.Array, size_out: int) -> jax.Array:
    """The weights ``[in, out]`` that ``pack`` made panels of."""
    return panels_njop.transpose(1, 3, 0, 2).reshape(2 * panels_njop.shape[1], -1)[:, :size_out]


def unpack_columns(panels_njop: jax.Array, columns_T: jax.Array) -> jax.Array:
    """Columns of the weights as rows ``[T, in]``; columns out of range give the nearest one."""
    width = panels_njop.shape[2]
    columns_T = jnp.clip(columns_T, 0, panels_njop.shape[0] * width - 1)
    parts_Tjp = panels_njop[columns_T // width, :, columns_T % width, :]
    return parts_Tjp.reshape(columns_T.size, -1)


def packed_matmul(
    x_RI: jax.Array,
    panels_njop: jax.Array,
    size_out: int,
    num_live: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Float32 ``[R, out]`` of bfloat16 rows times the weights in panels.

    Each number is summed in float32 in the order of ``in``, whatever R is, so a row's result does
    not depend on other rows. Where the CPU multiplies bfloat16 itself, it takes numbers below
    2**-126 as zero.

    ``num_live``: an int32; rows from there on are padding, of which nothing is read, and come out
    as zeros, at the cost of writing them. None: all rows are live.

    Raises ``ValueError`` for rows of another dtype or length, and ``NoImplementation`` where
    nothing can run it.
    """
    live = _verified(x_RI, panels_njop, num_live)
    num_panels, _, width, _ = panels_njop.shape
    if not width * (num_panels - 1) < size_out <= width * num_panels:
        raise ValueError(f"{num_panels} panels of {width} columns do not hold {size_out}")
    shape = jax.ShapeDtypeStruct((x_RI.shape[0], size_out), jnp.float32)
    return jax.ffi.ffi_call(_target("kernel"), shape)(x_RI, panels_njop, live)


def packed_silu_gate(
    x_RI: jax.Array, panels_njop: jax.Array, num_live: jax.typing.ArrayLike | None = None
) -> jax.Array:
    """Bfloat16 ``silu(gate) * up`` (``[R, n / 2 * o]``), of which the first half of the panels
    gives the gate and the second half what it lets through.

    Both are summed as by ``packed_matmul`` and rounded once, at the end. Errors as there, and
    ``ValueError`` for an odd number of panels.
    """
    live = _verified(x_RI, panels_njop, num_live)
    num_panels, _, width, _ = panels_njop.shape
    if num_panels % 2:
        raise ValueError(f"{num_panels} panels are not two halves")
    shape = jax.ShapeDtypeStruct((x_RI.shape[0], num_panels // 2 * width), jnp.bfloat16)
    return jax.ffi.ffi_call(_target("gated_kernel"), shape)(x_RI, panels_njop, live)


def _verified(
    x_RI: jax.Array, panels_njop: jax.Array, num_live: jax.typing.ArrayLike | None
) -> jax.Array:
    """The number of live rows, of arguments that fit each other."""
    if reason := native.missing():
        raise NoImplementation(f"packed_matmul has no implementation for this call: {reason}")
    num_rows, size_in = x_RI.shape
    _, num_pairs, width, _ = panels_njop.shape
    if x_RI.dtype != jnp.bfloat16 or panels_njop.dtype != jnp.bfloat16:
        raise ValueError(f"{x_RI.dtype} rows and {panels_njop.dtype} weights must be bfloat16")
    if size_in != 2 * num_pairs:
        raise ValueError(f"rows of {size_in} numbers do not fit weights of {2 * num_pairs} rows")
    if width != panel_width():
        raise ValueError(f"panels of {width} columns do not fit this CPU: it has {panel_width()}")
    return jnp.asarray(num_rows if num_live is None else num_live, jnp.int32)


@functools.cache
def _target(kernel: str) -> str:
    module = importlib.import_module(f"pallas_kernels.packed_matmul.{kernel}")
    name: str = module.register_kernel()
    return name


__all__ = [
    "pack",
    "packed_matmul",
    "packed_silu_gate",
    "panel_width",
    "refuse",
    "unpack",
    "unpack_columns",
]
