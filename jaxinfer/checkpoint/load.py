"""Fills abstract parameters from a source: each tensor read once, and placed on its devices.

Left-over tensors, missing parameters and wrong shapes are three distinct errors; each lists every
offender, so that one look tells what kind of checkpoint this is.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import NamedSharding

from jaxinfer.checkpoint.source import Index, Source
from jaxinfer.errors import MissingParameters, ShapeMismatch, UnexpectedTensors

#: Called after each parameter with (done, total).
Progress = Callable[[int, int], None]


#: Columns of a transposed matrix that are copied at once.
_COLUMNS = 128


def no_progress(done: int, total: int) -> None:
    """For callers that do not show any."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one parameter is made: part ``index`` of tensor ``source``, then ``transform``."""

    target: str
    source: str
    index: Index | None = None
    transform: Callable[[np.ndarray], np.ndarray] | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of all tensors that are read."""
        return (self.source,)

    def read(self, source: "Source | _ReadOnce", dtype: np.dtype | None = None) -> np.ndarray:
        """The parameter in ``dtype``, None for that of the tensor.

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
        try:
            made = array if self.transform is None else self.transform(array)
        except (ValueError, IndexError) as error:
            raise ShapeMismatch(
                f"{self.target}: {self.source} has the shape {array.shape}: {error}"
            ) from error
        # In the order of memory; whoever wants another order changes it afterwards: both at once
        # take four times as long.
        return made if dtype is None else made.astype(dtype, order="K", copy=False)


@dataclass(frozen=True, kw_only=True)
class Stack:
    """How one parameter is made of several tensors: the parts along a new first axis."""

    target: str
    parts: tuple[Recipe, ...]

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of all tensors that are read."""
        return tuple(part.source for part in self.parts)

    def read(self, source: "Source | _ReadOnce", dtype: np.dtype | None = None) -> np.ndarray:
        """As ``Recipe.read``; beside the result, the host holds one part.

        Raises:
            ShapeMismatch: as ``Recipe.read``, or parts of different shapes.
        """
        stacked: np.ndarray | None = None
        for nth, part in enumerate(self.parts):
            array = part.read(source, dtype)
            if stacked is None:
                stacked = np.empty((len(self.parts), *array.shape), dtype or array.dtype)
            if array.shape != stacked.shape[1:]:
                raise ShapeMismatch(
                    f"{self.target}: {part.source} gives {array.shape}, and {self.parts[0].source}"
                    f" gives {stacked.shape[1:]}"
                )
            _copy(array, stacked[nth])
        assert stacked is not None, "a stack has parts"
        return stacked


class _ReadOnce:
    """A source that is not asked again for a whole tensor that several parameters are cut from:
    it may take long to decode."""

    def __init__(self, source: Source, recipes: Iterable[Recipe | Stack]):
        self.tensors = source.tensors
        self._source = source
        self._left = Counter(
            part.source
            for recipe in recipes
            for part in (recipe.parts if isinstance(recipe, Stack) else (recipe,))
            if part.index is None
        )
        self._kept: dict[str, np.ndarray] = {}

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        if index is not None:
            return self._source.read(name, index)
        tensor = self._kept.pop(name, None)
        if tensor is None:
            tensor = self._source.read(name)
        self._left[name] -= 1
        if self._left[name] > 0:
            self._kept[name] = tensor
        return tensor


def load_params(
    source: Source,
    recipes: Iterable[Recipe | Stack],
    abstract: Mapping[str, jax.ShapeDtypeStruct],
    *,
    is_ignored: Callable[[str], bool] = lambda name: False,
    progress: Progress = no_progress,
) -> dict[str, jax.Array]:
    """Reads every parameter in ``abstract`` (path -> shape, dtype and sharding) from ``source``.

    Peak host memory is the parameters placed so far plus one tensor, or plus one parameter that is
    stacked from many; a tensor that several parameters are cut from stays until the last of them.
    ``is_ignored`` tells which tensors no parameter needs.

    Raises:
        MissingParameters: parameters without a recipe, or whose tensor is not in the source.
        UnexpectedTensors: tensors that no recipe uses and that are not ignored.
        ShapeMismatch: tensors that do not have their parameter's shape.
        CorruptCheckpoint: from the source, while reading.
    """
    by_target = {recipe.target: recipe for recipe in recipes}
    _check_names(source, by_target, abstract, is_ignored)
    once = _ReadOnce(source, [by_target[path] for path in abstract])
    params: dict[str, jax.Array] = {}
    wrong: list[str] = []
    for done, (path, wanted) in enumerate(abstract.items()):
        recipe = by_target[path]
        try:
            array = recipe.read(once, wanted.dtype)
        except ShapeMismatch as error:
            wrong.append(str(error))
            continue
        if array.shape != wanted.shape:
            given = " to ".join(dict.fromkeys((recipe.sources[0], recipe.sources[-1])))
            wrong.append(f"{path}: {wanted.shape} wanted, {given} gives {array.shape}")
            continue
        params[path] = _place(array, wanted)
        progress(done + 1, len(abstract))
    if wrong:
        raise ShapeMismatch(_listing(f"{source.path}: wrong shapes", wrong))
    return params


def _place(array: np.ndarray, wanted: jax.ShapeDtypeStruct) -> jax.Array:
    """The array contiguous, each device getting only its own part."""
    if not array.flags.c_contiguous:
        array, turned = np.empty(array.shape, array.dtype), array
        _copy(turned, array)
    if isinstance(wanted.sharding, NamedSharding) and wanted.sharding.mesh.size > 1:
        return jax.make_array_from_callback(
            wanted.shape, wanted.sharding, lambda index: array[index]
        )
    return jax.device_put(array, wanted.sharding)


def _copy(array: np.ndarray, out: np.ndarray) -> None:
    """``out[...] = array``; one that is transposed in memory a few columns at a time.

    So what was fetched into the caches is used before it leaves them: three times as fast.
    """
    if array.ndim < 2 or array.strides[-1] <= array.strides[-2]:
        out[...] = array
        return
    for start in range(0, array.shape[-1], _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        out[..., columns] = array[..., columns]


def _check_names(
    source: Source,
    by_target: Mapping[str, Recipe | Stack],
    abstract: Mapping[str, jax.ShapeDtypeStruct],
    is_ignored: Callable[[str], bool],
) -> None:
    missing = [
        f"{path}: no rule names a tensor for it" for path in abstract if path not in by_target
    ]
    missing += [
        f"{path}: from {name}"
        for path, recipe in by_target.items()
        if path in abstract
        for name in recipe.sources
        if name not in source.tensors
    ]
    if missing:
        raise MissingParameters(_listing(f"{source.path}: parameters without a tensor", missing))
    used = {name for path in abstract for name in by_target[path].sources}
    left = [name for name in source.tensors if name not in used and not is_ignored(name)]
    if left:
        raise UnexpectedTensors(_listing(f"{source.path}: tensors that no parameter takes", left))


def _listing(what: str, offenders: list[str]) -> str:
    return f"{what} ({len(offenders)}):\n  " + "\n  ".join(offenders)
