"""Meshes: names, sizes and the refusals."""

import jax
import pytest

from sharding import make_mesh, platform_of


def test_without_arguments_one_device_is_a_one_by_one_mesh():
    mesh = make_mesh()
    assert dict(mesh.shape) == {"data": 1, "model": 1}
    assert mesh.devices.ravel().tolist() == jax.devices()[:1]
    assert platform_of(mesh) == jax.default_backend()


def test_a_mesh_has_both_axes_whichever_is_named(four_devices):
    assert dict(make_mesh({"model": 4}).shape) == {"data": 1, "model": 4}
    assert dict(make_mesh({"data": 2}).shape) == {"data": 2, "model": 1}


def test_order_of_the_sizes_does_not_change_the_order_of_the_axes(four_devices):
    mesh = make_mesh({"model": 2, "data": 2})
    assert mesh.axis_names == ("data", "model")
    assert set(mesh.devices.ravel()) == set(four_devices)


def test_other_axes_stand_outside_data_and_model(four_devices):
    assert make_mesh({"model": 2, "stage": 2}).axis_names == ("stage", "data", "model")


def test_a_mesh_is_built_from_the_devices_it_is_given(four_devices):
    mesh = make_mesh({"model": 2}, devices=four_devices[2:])
    assert set(mesh.devices.ravel()) == set(four_devices[2:])


@pytest.mark.parametrize("size", [0, -1, 1.0, True, "2"])
def test_a_size_that_is_no_positive_integer_is_refused(size):
    with pytest.raises(ValueError, match="mesh axis 'model' has size"):
        make_mesh({"model": size})


def test_too_few_devices_are_refused_with_both_counts():
    with pytest.raises(
        ValueError, match=r"data=1 x model=4096 needs 4096 devices, and there are \d+"
    ):
        make_mesh({"model": 4096})
