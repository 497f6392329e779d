"""What is checked of a result that is too large to be computed twice."""

from collections.abc import Sequence

import numpy as np

MOST = 256


def drawn(sizes: Sequence[int], most: int = MOST) -> np.ndarray:
    """Indices, rising, of things that lie end to end in runs of these sizes.

    They are the first and the last of each run, however many these are, and others up to ``most``
    in sum, the same each time.
    """
    run_sizes = np.array([size for size in sizes if size > 0])
    ends = np.cumsum(run_sizes)
    chosen = np.union1d(ends - run_sizes, ends - 1)
    others = np.setdiff1d(np.arange(ends[-1]), chosen)
    more = min(max(most - chosen.size, 0), others.size)
    return np.union1d(chosen, np.random.default_rng(0).choice(others, more, replace=False))
