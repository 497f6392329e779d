"""What the Hopper kernel cannot do; asked before anything of Mosaic GPU is imported."""

import numpy as np

PAGE_SIZES = (64, 128, 256)
PAGE_DTYPES = ("bfloat16", "float16")
HEAD_DIMS = (64, 128, 256)
MAX_GROUP_SIZE = 64


def refuse_pages(page_size: int, num_kv_heads: int, head_dim: int, dtype: np.dtype) -> str | None:
    """Why pages of this kind cannot be served, or None."""
    for name, value, allowed in (
        ("page_size", page_size, PAGE_SIZES),
        ("head_dim", head_dim, HEAD_DIMS),
        ("dtype of the pages", dtype.name, PAGE_DTYPES),
    ):
        if value not in allowed:
            return f"{name} = {value} is not one of {', '.join(map(str, allowed))}"
    return None


def refuse_call(num_heads: int | None, num_kv_heads: int, *, is_unwritten: bool) -> str | None:
    """Why this kernel cannot run such a call, or None."""
    if is_unwritten:
        return "update_kv_cache = False with new keys and values is not implemented"
    if num_heads and num_heads // num_kv_heads > MAX_GROUP_SIZE:
        return f"{num_heads // num_kv_heads} query heads a kv head are more than {MAX_GROUP_SIZE}"
    return None
