"""Which implementation serves pages of a kind, on which chip, and what the others say."""

import jax
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from pallas_kernels import NoImplementation, init_kv_pages, ragged_paged_attention
from pallas_kernels.ragged_paged_attention.choice import LAYOUTS

CHIPS = {
    "tpu": ("tpu", "TPU v6 lite"),
    "gpu": ("gpu", "NVIDIA H200"),
    "xla": ("gpu", "NVIDIA A100"),
}


@pytest.mark.parametrize("name", CHIPS)
def test_the_chip_of_the_mesh_chooses(name):
    platform, kind = CHIPS[name]
    chip = AbstractDevice(device_kind=kind, num_cores=1, platform=platform)
    mesh = AbstractMesh((1,), ("chip",), abstract_device=chip)
    with jax.sharding.use_abstract_mesh(mesh):
        pages = jax.eval_shape(lambda: init_kv_pages(3, 64, 2, 64, "bfloat16"))
    assert LAYOUTS[type(pages)] == name


def test_a_cpu_never_chooses_it_and_a_refusal_says_why(batch_of):
    batch = batch_of([(1, 3)], pages_dtype="bfloat16", head_dim=64, page_size=64)
    call = {"scale": 0.25, "implementation": "gpu"}
    with pytest.raises(NoImplementation, match="gpu: the pages have the layout of xla"):
        ragged_paged_attention(*batch.arguments, **call)
    theirs = batch.where(kv_pages=init_kv_pages(99, 64, 2, 64, "bfloat16", implementation="gpu"))
    with pytest.raises(NoImplementation, match="xla: the pages have the layout of gpu"):
        ragged_paged_attention(*theirs.arguments, scale=0.25, implementation="xla")
    for sizes, reason in (
        ((3, 32, 1, 64, "bfloat16"), "page_size = 32 is not one of 64, 128, 256"),
        ((3, 64, 1, 72, "bfloat16"), "head_dim = 72 is not one of 64, 80, 96, 128, 192, 256"),
    ):
        with pytest.raises(NoImplementation, match=reason):
            init_kv_pages(*sizes, implementation="gpu")
