"""Which gated MLPs one kernel computes, and that it computes what their parts do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.config import MlpSpec
from jaxinfer.ops.activation import activate_gate
from jaxinfer.ops.gated import gate_in_product
from jaxinfer.ops.joined import InJoined, JoinedKernel, linear_joined
from jaxinfer.ops.packed import pack_kernel
from pallas_kernels import native
from pallas_kernels.packed_matmul import panel_width

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))


def random_bf16(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape), jnp.bfloat16)


def joined(*sizes: int) -> JoinedKernel:
    return JoinedKernel(pack_kernel(random_bf16(8, sum(sizes))), sizes)


def test_silu_gates_as_its_parts_do() -> None:
    width = 2 * panel_width()
    x, kernel, spec = random_bf16(3, 5, 8), joined(width, width), MlpSpec(width=width)
    hidden = gate_in_product(spec, x, kernel)
    assert hidden is not None
    expected = activate_gate(spec, *linear_joined(x, kernel)).astype(jnp.bfloat16)
    rounding = 2.0**-8
    np.testing.assert_allclose(
        np.asarray(hidden, np.float32), np.asarray(expected, np.float32), rtol=rounding
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"activation": "gelu"},
        {"activation": "gelu_tanh"},
        {"activation": "relu"},
        {"limit": 7.0},
        {"swish_beta": 1.7},
        {"up_offset": 1.0},
        {"sparsity": 0.5},
        {"bias": True},
    ],
    ids=str,
)
def test_other_gates_are_left_to_their_parts(fields: dict) -> None:
    width = panel_width()
    spec = MlpSpec(width=width, **fields)
    assert gate_in_product(spec, random_bf16(5, 8), joined(width, width)) is None


def test_kernels_of_other_forms_are_left_to_their_parts() -> None:
    width = panel_width()
    x, spec = random_bf16(5, 8), MlpSpec(width=width)
    assert gate_in_product(spec, x, joined(width, width)) is not None
    assert gate_in_product(spec, x.astype(jnp.float32), joined(width, width)) is None
    assert gate_in_product(spec, x, joined(width, 2 * width)) is None
    assert gate_in_product(spec, x, joined(width, width).kernel) is None
    assert gate_in_product(spec, x, InJoined()) is None
    plain = JoinedKernel(random_bf16(8, 2 * width), (width, width))
    assert gate_in_product(spec, x, plain) is None
    narrow = MlpSpec(width=width - 8)
    assert gate_in_product(narrow, x, joined(width - 8, width - 8)) is None
