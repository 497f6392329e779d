"""What the Hopper kernel cannot do; asked before anything of Mosaic GPU is imported."""

import numpy as np

PAGE_SIZES = (64, 128, 256)
PAGE_DTYPES = ("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "int8")
HEAD_DIMS = (64, 80, 96, 128, 192, 256)


def refuse_pages(page_size: int, head_dim: int, dtype: np.dtype) -> str | None:
    """Why pages of this kind cannot be served, or None."""
    for name, value, allowed in (
        ("page_size", page_size, PAGE_SIZES),
        ("head_dim", head_dim, HEAD_DIMS),
        ("dtype of the pages", dtype.name, PAGE_DTYPES),
    ):
        if value not in allowed:
            return f"{name} = {value} is not one of {', '.join(map(str, allowed))}"
    return None
