"""named_sharding and tree_shardings: every array of a tree gets its place, or a reason."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from sharding import DEFAULT_RULES, device_bytes, make_mesh, named_sharding, tree_shardings

SHAPES = {
    "embed": jax.ShapeDtypeStruct((32, 8), "float32"),
    "blocks": [
        {
            "wq": jax.ShapeDtypeStruct((8, 4, 2), "float32"),
            "norm": jax.ShapeDtypeStruct((8,), "float32"),
        }
    ],
}
AXES = {
    "embed": ("vocab", "embed"),
    "blocks": [{"wq": ("embed", "heads", "head_dim"), "norm": ("embed",)}],
}


def test_every_array_of_a_tree_gets_the_spec_of_its_axes():
    shardings = tree_shardings(SHAPES, AXES, make_mesh())
    assert shardings["embed"].spec == PartitionSpec("model", None)
    assert shardings["blocks"][0]["wq"].spec == PartitionSpec(None, "model", None)
    assert shardings["blocks"][0]["norm"].spec == PartitionSpec(None)


def test_a_sharded_array_equals_the_whole_one_and_each_device_holds_its_part(four_devices):
    whole = np.arange(32 * 8, dtype=np.float32).reshape(32, 8)
    array = jax.device_put(
        whole, named_sharding(make_mesh({"model": 4}), whole.shape, ("vocab", "embed"))
    )
    assert {shard.data.shape for shard in array.addressable_shards} == {(8, 8)}
    np.testing.assert_array_equal(np.asarray(array), whole)


@pytest.mark.parametrize("sizes", [{}, {"model": 4}, {"data": 4}, {"data": 2, "model": 2}])
def test_the_bytes_of_a_device_are_those_of_its_shards(four_devices, sizes):
    shardings = tree_shardings(SHAPES, AXES, make_mesh(sizes))
    placed = jax.tree.map(
        lambda array, where: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=where),
        SHAPES,
        shardings,
    )
    arrays = jax.tree.map(
        lambda array, where: jax.device_put(np.zeros(array.shape, array.dtype), where),
        SHAPES,
        shardings,
    )
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(arrays))
    assert device_bytes(placed) == device_bytes(arrays) == held


def test_a_size_that_does_not_divide_is_refused_with_the_name_and_the_fix(four_devices):
    mesh = make_mesh({"model": 4})
    message = (
        r"wk: 'kv_heads' of size 3 does not divide over 4 devices.*rules \| \{'kv_heads': None\}"
    )
    with pytest.raises(ValueError, match=message):
        named_sharding(mesh, (8, 3, 2), ("embed", "kv_heads", "head_dim"), name="wk")
    replicated = named_sharding(mesh, (3,), ("kv_heads",), DEFAULT_RULES | {"kv_heads": None})
    assert replicated.is_fully_replicated


def test_names_and_dimensions_of_different_count_are_refused():
    with pytest.raises(ValueError, match=r"norm: 2 logical axes .* for the 1 of shape \(8,\)"):
        named_sharding(make_mesh(), (8,), ("embed", "mlp"), name="norm")


def test_a_rule_to_an_axis_that_the_mesh_has_not_is_refused():
    with pytest.raises(
        ValueError, match=r"'mlp' goes to \['stage'\], and the mesh has \['data', 'model'\]"
    ):
        named_sharding(make_mesh(), (8,), ("mlp",), {"mlp": "stage"})


def test_all_arrays_that_cannot_be_placed_are_named_in_one_error():
    axes = {
        "embed": ("vocab", "width"),
        "blocks": [{"wq": ("embed", "heads", "mlp"), "norm": ("embed",)}],
    }
    with pytest.raises(ValueError, match="width") as refused:
        tree_shardings(SHAPES, axes, make_mesh())
    reasons = sorted(line.split(":")[0] for line in str(refused.value).splitlines())
    assert reasons == ["blocks.0.wq", "embed"]


def test_trees_that_differ_are_refused():
    with pytest.raises(ValueError, match="blocks"):
        tree_shardings(SHAPES, {"embed": ("vocab", "embed")}, make_mesh())
