"""Orbax directories give back the tree that was saved, on the shardings that are asked for."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxinfer.checkpoint.orbax import is_orbax_directory, load_params, save_params
from jaxinfer.errors import (
    CorruptCheckpoint,
    MissingParameters,
    ShapeMismatch,
    UnexpectedTensors,
)

CONFIG = {"model_type": "llama", "hidden_size": 4}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaled:
    """Stands for a quantised array: a pytree inside the tree of parameters."""

    values: jax.Array
    scale: jax.Array


def params():
    return {
        "embed": jnp.arange(12, dtype=jnp.bfloat16).reshape(3, 4),
        "layers": {
            "0": Scaled(values=jnp.arange(8, dtype=jnp.int8), scale=jnp.ones(2, jnp.float32))
        },
    }


def abstract(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def test_a_saved_tree_loads_equal_and_of_the_same_types(tmp_path):
    save_params(tmp_path / "model", params(), CONFIG)
    loaded = load_params(tmp_path / "model", abstract(params()))
    assert jax.tree.structure(loaded) == jax.tree.structure(params())
    for actual, expected in zip(jax.tree.leaves(loaded), jax.tree.leaves(params()), strict=True):
        np.testing.assert_array_equal(np.asarray(actual), np.asarray(expected), strict=True)
    assert json.loads((tmp_path / "model" / "config.json").read_text()) == CONFIG


def test_arrays_come_with_the_sharding_that_is_asked_for(tmp_path):
    save_params(tmp_path, params(), CONFIG)
    mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("model"))
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), params()
    )
    loaded = load_params(tmp_path, wanted)
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(loaded))


def test_only_a_complete_directory_counts_as_one(tmp_path):
    assert not is_orbax_directory(tmp_path)
    save_params(tmp_path, params(), CONFIG)
    assert is_orbax_directory(tmp_path)
    (tmp_path / "config.json").unlink()
    assert not is_orbax_directory(tmp_path)


def test_parameters_are_replaced_only_when_asked(tmp_path):
    save_params(tmp_path, params(), CONFIG)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save_params(tmp_path, params(), CONFIG)
    doubled = jax.tree.map(lambda leaf: leaf + leaf, params())
    save_params(tmp_path, doubled, CONFIG, overwrite=True)
    loaded = load_params(tmp_path, abstract(doubled))
    np.testing.assert_array_equal(np.asarray(loaded["embed"]), np.asarray(doubled["embed"]))


def test_another_tree_is_refused_with_every_difference_listed(tmp_path):
    save_params(tmp_path, params(), CONFIG)
    wanted = abstract(params())
    leaf = jax.ShapeDtypeStruct((1,), jnp.float32)
    with pytest.raises(MissingParameters, match="2 parameters: bias, head"):
        load_params(tmp_path, wanted | {"head": leaf, "bias": leaf})
    with pytest.raises(UnexpectedTensors, match="layers/0/scale, layers/0/values"):
        load_params(tmp_path, {"embed": wanted["embed"]})
    with pytest.raises(ShapeMismatch, match=r"embed: \(3, 4\), not \(1,\)"):
        load_params(tmp_path, wanted | {"embed": leaf})


def test_a_directory_without_a_checkpoint_is_corrupt(tmp_path):
    (tmp_path / "params").mkdir()
    with pytest.raises(CorruptCheckpoint, match="params"):
        load_params(tmp_path, abstract(params()))


def test_orbax_is_imported_only_when_it_is_used():
    code = "import sys, jaxinfer.checkpoint.orbax; assert 'orbax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
