"""The table of what keys and values cost stands in the README as the program prints it."""

from pathlib import Path

import jax
import pytest

from jaxinfer.bench.kv_table import DTYPE, PAGE_SIZE, ROWS, model, table
from jaxinfer.cache import init_cache, layer_groups
from jaxinfer.config import LatentSpec

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_has_the_table():
    lines = README.read_text(encoding="utf-8").splitlines()
    expected = table()
    start = lines.index(expected[0])
    assert lines[start : start + len(expected)] == expected


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_what_pools_of_that_size_take(name):
    config = model(ROWS[name])
    [line] = [line for line in table() if line.startswith(f"| {name} |")]
    a_token, short = (int(cell.replace(",", "")) for cell in line.split("|")[2:4])
    counts = tuple(
        4096 // PAGE_SIZE if group.window is None else min(4096, group.window + 64) // PAGE_SIZE
        for group in layer_groups(config)
    )
    pools = jax.eval_shape(lambda: init_cache(config, counts, PAGE_SIZE, DTYPE))
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pools))
    assert short == round(held / 2**20)
    owners = [layer.mixer for layer in config.layers if layer.kv_from is None]
    assert a_token == sum(
        2 * (mixer.kv_rank + mixer.rope_dim)
        if isinstance(mixer, LatentSpec)
        else 2 * 2 * mixer.num_kv_heads * mixer.head_dim
        for mixer in owners
    )
