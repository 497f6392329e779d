"""Which implementation runs, on which chip."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from pallas_kernels.grouped_matmul.choice import choose
from pallas_kernels.grouped_matmul.problem import Problem

CHIPS = {
    "tpu": ("tpu", "TPU v6 lite"),
    "hopper": ("gpu", "NVIDIA H200"),
    "ampere": ("gpu", "NVIDIA A100"),
    "cpu": ("cpu", "cpu"),
}


def chosen(chip, dtype="bfloat16", w_dtype=None, depth=256):
    platform, kind = CHIPS[chip]
    device = AbstractDevice(device_kind=kind, num_cores=1, platform=platform)
    problem = Problem(
        num_rows=64,
        depth=depth,
        num_groups=4,
        columns=128,
        x_dtype=jnp.dtype(dtype),
        w_dtype=jnp.dtype(w_dtype or dtype),
        out_dtype=jnp.dtype(dtype),
    )
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("chip",), abstract_device=device)):
        return choose(problem, None)


@pytest.mark.parametrize(
    ("chip", "kind", "name"),
    [
        ("tpu", {}, "tpu"),
        ("tpu", {"dtype": "float32"}, "tpu"),
        ("tpu", {"w_dtype": "int8"}, "tpu"),
        ("tpu", {"depth": 100}, "xla"),
        ("hopper", {}, "gpu"),
        ("hopper", {"dtype": "float32"}, "xla"),
        ("hopper", {"w_dtype": "int8"}, "xla"),
        ("ampere", {}, "xla"),
        ("cpu", {}, "xla"),
    ],
)
def test_the_chip_of_the_mesh_and_the_kind_of_the_call_choose(chip, kind, name):
    assert chosen(chip, **kind) == name
