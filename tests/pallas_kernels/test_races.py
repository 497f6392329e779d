"""The race detector of the TPU interpreter finds a race: else "none found" would say nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tests.pallas_kernels.on_chip import needs_an_interpreter

pytestmark = pytest.mark.interpreted

# Newer interpreters raise an error, which is right for kernels that should not race.
QUIETLY = {"on_race": "warn"} if hasattr(pltpu.InterpretParams, "on_race") else {}


def double(x, *, waits):
    """``2 * x`` from a copy of it, which is read as it arrives or after."""

    def kernel(x, out, copied, semaphore):
        copy = pltpu.make_async_copy(x, copied, semaphore)
        copy.start()
        if waits:
            copy.wait()
        out[...] = 2 * copied[...]
        if not waits:
            copy.wait()

    return pl.pallas_call(
        kernel,
        in_specs=[pl.BlockSpec(memory_space=pl.ANY)],
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        scratch_shapes=[pltpu.VMEM(x.shape, x.dtype), pltpu.SemaphoreType.DMA(())],
        interpret=pltpu.InterpretParams(detect_races=True, **QUIETLY),
    )(x)


def test_a_copy_that_is_not_waited_for_is_a_race(has_raced):
    needs_an_interpreter("races")
    x = jax.block_until_ready(jnp.ones((8, 128), jnp.float32))
    out = jax.block_until_ready(double(x, waits=True))
    np.testing.assert_array_equal(np.asarray(out), 2.0)
    assert not has_raced()
    jax.block_until_ready(double(x, waits=False))
    assert has_raced()
