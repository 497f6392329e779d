"""Which implementation serves pages of a kind, and what the others say."""

import pytest

from pallas_kernels import NoImplementation, init_latent_pages, latent_attention


@pytest.mark.parametrize("name", ["tpu", "gpu", "xla"])
def test_what_is_not_in_this_build_says_so(name, batch_of):
    with pytest.raises(NoImplementation, match=f"no {name} kernel in this build"):
        init_latent_pages(3, 64, 512, 64, "bfloat16", implementation=name)
    with pytest.raises(NoImplementation, match=f"no {name} kernel in this build"):
        latent_attention(*batch_of([(1, 9)]).arguments, scale=0.25, implementation=name)
