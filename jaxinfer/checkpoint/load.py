"""Fills abstract parameters from a source: each tensor read once, and placed on its devices.

Left-over tensors, missing parameters and wrong shapes are three distinct errors; each lists every
offender, so that one look tells what kind of checkpoint this is.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import NamedSharding

from jaxinfer.checkpoint.source import Index, Source
from jaxinfer.errors import MissingParameters, ShapeMismatch, UnexpectedTensors

#: Called after each parameter with (done, total).
Progress = Callable[[int, int], None]


def no_progress(done: int, total: int) -> None:
    """For callers that do not show any."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one parameter is made: part ``index`` of tensor ``source``, then ``transform``."""

    target: str
    source: str
    index: Index | None = None
    transform: Callable[[np.ndarray], np.ndarray] | None = None

    def read(self, source: Source) -> np.ndarray:
        """The parameter.

        Raises:
            ShapeMismatch: the tensor has fewer axes than ``index``, or a shape that ``transform``
                cannot make anything of.
        """
        shape = source.tensors[self.source].shape
        if len(self.index or ()) > len(shape):
            raise ShapeMismatch(
                f"{self.target}: {self.source} has the shape {shape}, too few axes to read a part"
            )
        array = source.read(self.source, self.index)
        if self.transform is None:
            return array
        try:
            return self.transform(array)
        except (ValueError, IndexError) as error:
            raise ShapeMismatch(
                f"{self.target}: {self.source} has the shape {array.shape}: {error}"
            ) from error


def load_params(
    source: Source,
    recipes: Iterable[Recipe],
    abstract: Mapping[str, jax.ShapeDtypeStruct],
    *,
    is_ignored: Callable[[str], bool] = lambda name: False,
    progress: Progress = no_progress,
) -> dict[str, jax.Array]:
    """Reads every parameter in ``abstract`` (path -> shape, dtype and sharding) from ``source``.

    Peak host memory is the parameters placed so far plus one tensor. ``is_ignored``
    tells which tensors no parameter needs.

    Raises:
        MissingParameters: parameters without a recipe, or whose tensor is not in the source.
        UnexpectedTensors: tensors that no recipe uses and that are not ignored.
        ShapeMismatch: tensors that do not have their parameter's shape.
        CorruptCheckpoint: from the source, while reading.
    """
    by_target = {recipe.target: recipe for recipe in recipes}
    _check_names(source, by_target, abstract, is_ignored)
    params: dict[str, jax.Array] = {}
    wrong: list[str] = []
    for done, (path, wanted) in enumerate(abstract.items()):
        recipe = by_target[path]
        try:
            array = recipe.read(source)
        except ShapeMismatch as error:
            wrong.append(str(error))
            continue
        if array.shape != wanted.shape:
            wrong.append(f"{path}: {wanted.shape} wanted, {recipe.source} gives {array.shape}")
            continue
        params[path] = _place(array, wanted)
        progress(done + 1, len(abstract))
    if wrong:
        raise ShapeMismatch(_listing(f"{source.path}: wrong shapes", wrong))
    return params


def _place(array: np.ndarray, wanted: jax.ShapeDtypeStruct) -> jax.Array:
    """The array in its dtype and contiguous, each device getting only its own part."""
    # First the dtype, in the order of memory, and then the order: at once takes four times as long.
    array = np.ascontiguousarray(array.astype(wanted.dtype, order="K", copy=False))
    if isinstance(wanted.sharding, NamedSharding) and wanted.sharding.mesh.size > 1:
        return jax.make_array_from_callback(
            wanted.shape, wanted.sharding, lambda index: array[index]
        )
    return jax.device_put(array, wanted.sharding)


def _check_names(
    source: Source,
    by_target: Mapping[str, Recipe],
    abstract: Mapping[str, jax.ShapeDtypeStruct],
    is_ignored: Callable[[str], bool],
) -> None:
    missing = [
        f"{path}: no rule names a tensor for it" for path in abstract if path not in by_target
    ]
    missing += [
        f"{path}: from {recipe.source}"
        for path, recipe in by_target.items()
        if path in abstract and recipe.source not in source.tensors
    ]
    if missing:
        raise MissingParameters(_listing(f"{source.path}: parameters without a tensor", missing))
    used = {by_target[path].source for path in abstract}
    left = [name for name in source.tensors if name not in used and not is_ignored(name)]
    if left:
        raise UnexpectedTensors(_listing(f"{source.path}: tensors that no parameter takes", left))


def _listing(what: str, offenders: list[str]) -> str:
    return f"{what} ({len(offenders)}):\n  " + "\n  ".join(offenders)
