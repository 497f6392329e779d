"""What all sources share: which files are one, and what an index means."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxinfer.checkpoint.source import bounds, open_source
from jaxinfer.errors import ModelNotFound

ENDS = st.none() | st.integers(-6, 6)


@given(st.lists(st.tuples(ENDS, ENDS), max_size=3))
def test_bounds_select_what_an_index_selects(ends):
    array = np.arange(3 * 4 * 5).reshape(3, 4, 5)
    index = tuple(slice(*pair) for pair in ends)
    parts = tuple(slice(start, stop) for start, stop in bounds(index, array.shape))
    np.testing.assert_array_equal(array[parts], array[index])


def test_an_index_with_steps_or_too_many_axes_is_refused():
    with pytest.raises(ValueError, match="steps"):
        bounds((slice(None, None, 2),), (3,))
    with pytest.raises(ValueError, match="more axes"):
        bounds((slice(None), slice(None)), (3,))


def test_what_is_neither_directory_nor_gguf_is_not_a_model(tmp_path):
    (tmp_path / "weights.bin").touch()
    with pytest.raises(ModelNotFound, match="neither a directory"):
        open_source(tmp_path / "weights.bin")
    with pytest.raises(ModelNotFound, match="does not exist"):
        open_source(tmp_path / "absent.gguf")


def test_reading_checkpoints_imports_neither_jax_nor_the_gguf_package():
    modules = "jaxinfer.checkpoint.gguf, jaxinfer.checkpoint.safetensors"
    code = f"import sys, {modules}; assert not {{'jax', 'gguf', 'safetensors'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
