"""What the Hopper kernel cannot do; asked before anything of Mosaic GPU is imported."""

import jax
import jax.numpy as jnp

PAGE_SIZES = (64, 128, 256)
PAGE_DTYPES = ("bfloat16", "float16")
LATENT_RANKS = (256, 512)
ROPE_DIMS = (32, 64)


def refuse_pages(
    page_size: int, latent_rank: int, rope_dim: int, dtype: jax.typing.DTypeLike
) -> str | None:
    """Why pages of this kind cannot be served, or None."""
    for name, value, allowed in (
        ("page_size", page_size, PAGE_SIZES),
        ("latent_rank", latent_rank, LATENT_RANKS),
        ("rope_dim", rope_dim, ROPE_DIMS),
        ("dtype of the pages", jnp.dtype(dtype).name, PAGE_DTYPES),
    ):
        if value not in allowed:
            return f"{name} = {value} is not one of {', '.join(map(str, allowed))}"
    return None
