"""Which implementation serves pages of a kind, on which chip, and what the others say."""

import jax
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from pallas_kernels import NoImplementation, init_latent_pages, latent_attention
from pallas_kernels.latent_attention.choice import LAYOUTS

CHIPS = {
    "tpu": ("tpu", "TPU v6 lite"),
    "gpu": ("gpu", "NVIDIA H100 80GB HBM3"),
    "reference": ("gpu", "NVIDIA A100"),
}


@pytest.mark.parametrize("name", CHIPS)
def test_the_chip_of_the_mesh_chooses(name):
    platform, kind = CHIPS[name]
    chip = AbstractDevice(device_kind=kind, num_cores=1, platform=platform)
    mesh = AbstractMesh((1,), ("chip",), abstract_device=chip)
    with jax.sharding.use_abstract_mesh(mesh):
        pages = jax.eval_shape(lambda: init_latent_pages(3, 64, 512, 64, "bfloat16"))
    assert LAYOUTS[type(pages)] == name


def test_what_is_not_in_this_build_says_so(batch_of):
    with pytest.raises(NoImplementation, match="no xla kernel in this build"):
        init_latent_pages(3, 64, 512, 64, "bfloat16", implementation="xla")
    with pytest.raises(NoImplementation, match="no xla kernel in this build"):
        latent_attention(*batch_of([(1, 9)]).arguments, scale=0.25, implementation="xla")


@pytest.mark.parametrize("name", ["tpu", "gpu"])
def test_pages_go_with_the_implementation_that_made_them(name, batch_of):
    batch = batch_of([(1, 9)], latent_rank=256, rope_dim=32)
    with pytest.raises(NoImplementation, match=f"{name}: the pages have the layout of reference"):
        latent_attention(*batch.arguments, scale=1.0, implementation=name)
    theirs = batch.where(latent_pages=init_latent_pages(5, 64, 256, 32, "bfloat16", name))
    with pytest.raises(NoImplementation, match=f"reference: the pages have the layout of {name}"):
        latent_attention(*theirs.arguments, scale=1.0, implementation="reference")
