"""What the chip that is here reaches: time it measures, and the limits that times are held against.

Limits are measured, in the same run and on the same chip as what they judge: bytes a second by a
copy too large for any cache, FLOPs by a matrix product in the dtype of the kernel's own products.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

SAMPLE_SECONDS = 0.05
"""What one sample lasts on an accelerator, so that the host's part in it does not show."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the machine reached in this run, with products of ``dtype``."""

    bytes_per_second: float
    flops_per_second: float
    dtype: str

    def least_seconds(self, num_bytes: float, flops: float) -> float:
        """Nothing that moves so many bytes and computes so much can take less."""
        return max(num_bytes / self.bytes_per_second, flops / self.flops_per_second)


def is_accelerator() -> bool:
    return jax.default_backend() != "cpu"


def seconds_of(step: Callable[[], jax.Array], repeats: int) -> list[float]:
    """Time of a call of ``step``, ``repeats`` samples of it, after a call that is not counted.

    On the CPU a sample is the wall time of one call. An accelerator runs behind the host: there a
    sample is as many calls as fill ``SAMPLE_SECONDS``, launched one behind the other and waited for
    once, over their number. Steps must depend on each other (donate what they carry), or the chip
    may run two at a time.
    """
    jax.block_until_ready(step())

    def sample(launches: int) -> float:
        start = time.perf_counter()
        for _ in range(launches - 1):
            step()
        jax.block_until_ready(step())
        return (time.perf_counter() - start) / launches

    if not is_accelerator():
        return [sample(1) for _ in range(repeats)]
    launches = min(1000, math.ceil(SAMPLE_SECONDS / sample(3)))
    return [sample(launches) for _ in range(repeats)]


def measure_limits(dtype: jax.typing.DTypeLike = "float32", repeats: int = 5) -> Limits:
    """The limits of the default device: ``copy_bandwidth`` and ``product_rate``."""
    return Limits(
        bytes_per_second=copy_bandwidth(repeats),
        flops_per_second=product_rate(dtype, repeats),
        dtype=jnp.dtype(dtype).name,
    )


def copy_bandwidth(repeats: int = 5) -> float:
    """Bytes a second that the default device reads and writes together.

    They are those of an update in place of 256 MiB (2 GiB on an accelerator, or half of what is
    free there): new memory would first have to be found.
    """
    num_floats = _free_bytes(2**32) // 8 if is_accelerator() else 2**26
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    large = jnp.zeros(num_floats, jnp.float32)

    def update() -> jax.Array:
        nonlocal large
        large = add(large)
        return large

    seconds = min(seconds_of(update, repeats))
    num_bytes = 2 * large.nbytes
    large.delete()
    return num_bytes / seconds


def _free_bytes(most: int) -> int:
    stats = jax.devices()[0].memory_stats() or {}
    if not {"bytes_limit", "bytes_in_use"} <= stats.keys():
        return most
    return min(stats["bytes_limit"] - stats["bytes_in_use"], most)


def product_rate(dtype: jax.typing.DTypeLike = "float32", repeats: int = 5) -> float:
    """FLOPs a second of a product of side 2,048 (8,192 on an accelerator) in ``dtype``.

    On random numbers, for zeros and ones draw less power and run faster. A float32 product is one
    to float32 precision. Kernels for Hopper make it of bfloat16 ones, which are faster: measure
    their limit in bfloat16.
    """
    side = 8192 if is_accelerator() else 2048
    # With this deviation products keep the size of their numbers, however many follow each other.
    left = jax.random.normal(jax.random.key(0), (side, side), jnp.float32) * side**-0.5
    left, right = left.astype(dtype), jax.random.normal(jax.random.key(1), left.shape).astype(dtype)
    precision = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    product = jax.jit(lambda x, y: jnp.matmul(x, y, precision=precision))

    def multiply() -> jax.Array:
        nonlocal right
        right = product(left, right)
        return right

    return 2 * side**3 / min(seconds_of(multiply, repeats))
