"""Which implementation serves pages of a kind, on which chip, and what the others say."""

import jax
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from pallas_kernels import NoImplementation, init_latent_pages, latent_attention
from pallas_kernels.latent_attention.choice import LAYOUTS, Wanted, choose
from pallas_kernels.paging.options import Options

CHIPS = {
    "tpu": ("tpu", "TPU v6 lite"),
    "gpu": ("gpu", "NVIDIA H100 80GB HBM3"),
    "xla": ("gpu", "NVIDIA A100"),
}


@pytest.mark.parametrize("name", CHIPS)
def test_the_chip_of_the_mesh_chooses(name):
    platform, kind = CHIPS[name]
    chip = AbstractDevice(device_kind=kind, num_cores=1, platform=platform)
    mesh = AbstractMesh((1,), ("chip",), abstract_device=chip)
    with jax.sharding.use_abstract_mesh(mesh):
        pages = jax.eval_shape(lambda: init_latent_pages(3, 64, 512, 64, "bfloat16"))
    assert LAYOUTS[type(pages)] == name


@pytest.mark.parametrize("page_size", [8, 24, 64])
def test_the_cpu_runs_plain_xla_on_pages_of_any_size(page_size, batch_of):
    batch = batch_of([(1, 9)], page_size=page_size)
    options = Options(scale=1.0)
    wanted = Wanted.by_call(batch.latent_pages, batch.q_latent_TNR, has_new=True, options=options)
    assert choose(wanted, None) == "xla"


@pytest.mark.parametrize("name", ["tpu", "gpu"])
def test_pages_go_with_the_implementation_that_made_them(name, batch_of):
    batch = batch_of([(1, 9)], latent_rank=256, rope_dim=32)
    with pytest.raises(NoImplementation, match=f"{name}: the pages have the layout of xla"):
        latent_attention(*batch.arguments, scale=1.0, implementation=name)
    theirs = batch.where(latent_pages=init_latent_pages(5, 64, 256, 32, "bfloat16", name))
    for plain in ("xla", "reference"):
        with pytest.raises(NoImplementation, match=f"{plain}: the pages have the layout of {name}"):
            latent_attention(*theirs.arguments, scale=1.0, implementation=plain)
