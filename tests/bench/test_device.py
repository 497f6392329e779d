"""Measurements of the machine are plausible; nobody compares them with a clock."""

import jax
import jax.numpy as jnp

from jaxinfer.bench.device import counted_compiles, peak_memory_bytes


def test_a_compilation_is_counted_once_and_a_second_call_is_none():
    x = jnp.ones((3,), jnp.float32)
    double = jax.jit(lambda x: x * jnp.float32(2.125))
    with counted_compiles() as compiles:
        double(x)
        assert compiles.count == 1
        double(x)
        assert compiles.count == 1
    jax.jit(lambda x: x * jnp.float32(3.125))(x)
    assert compiles.count == 1


def test_memory_is_used():
    held = jax.block_until_ready(jnp.zeros((2**22,), jnp.float32))
    assert peak_memory_bytes() > held.nbytes
