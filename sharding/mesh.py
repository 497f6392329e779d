"""Meshes: devices laid out along named axes."""

import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import AxisType, Mesh

#: The axes every mesh has, outermost first: neighbours along ``model`` have the fastest links.
AXES = ("data", "model")


def make_mesh(
    sizes: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh over the first devices that fill it; without arguments, one device as a 1 x 1 mesh.

    Code that runs on one device and code that runs on many is then the same code.

    Args:
        sizes: devices along each axis, e.g. ``{"data": 2, "model": 4}``. ``data`` and ``model``
            have size 1 where they are not named; other axes stand outside them, in the order given.
        devices: the devices to choose from, ``jax.devices()`` if None.

    Raises:
        ValueError: a size that is not a positive integer, or more places than devices.
    """
    sizes = dict(sizes or {})
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"mesh axis {name!r} has size {size!r}; it must be an integer above 0")
    names = (*(name for name in sizes if name not in AXES), *AXES)
    shape = tuple(sizes.get(name, 1) for name in names)
    available = jax.devices() if devices is None else devices
    needed = math.prod(shape)
    if needed > len(available):
        asked = " x ".join(f"{name}={size}" for name, size in zip(names, shape, strict=True))
        raise ValueError(
            f"a mesh of {asked} needs {needed} devices, and there are {len(available)}: make an"
            " axis smaller, or on a CPU ask for more devices with the option jax_num_cpu_devices"
        )
    axis_types = (AxisType.Auto,) * len(names)
    return jax.make_mesh(shape, names, axis_types=axis_types, devices=available[:needed])


def platform_of(mesh: Mesh) -> str:
    """Of its devices, which are all of one kind: ``cpu``, ``gpu`` or ``tpu``."""
    return mesh.devices.flat[0].platform
