"""A model: its config, its graph, and its parameters, or the shapes where they will be."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from jaxinfer.config import ModelConfig, MoeSpec
from jaxinfer.errors import CapacityError, ConfigError, InvalidParameter
from jaxinfer.models.decoder import Decoder
from jaxinfer.ops.blocked import BlockedEmbedding, BlockedKernel
from jaxinfer.ops.packed import PackedEmbedding, PackedKernel
from jaxinfer.shapes import Tree
from sharding import device_bytes, named_sharding

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class Model:
    """``params`` is a nested dict of arrays, or of what ``layout`` made of them; in a blank model,
    of ShapeDtypeStructs with shardings. Compiled programs close over ``graph``.

    ``merge(params)`` gives the ``Decoder``, inside a traced function.
    """

    config: ModelConfig
    graph: nnx.GraphDef
    params: Tree
    mesh: Mesh
    dtype: jnp.dtype
    max_len: int

    def merge(self, params: Tree) -> Decoder:
        return nnx.merge(self.graph, params)

    @property
    def shapes(self) -> "Model":
        """The blank model of this one."""
        return replace(self, params=jax.tree.map(_shape_of, self.params))

    @property
    def num_params(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))

    @property
    def num_active_params(self) -> int:
        """All but those of the experts that one token does not go to."""
        idle = 0
        for i, layer in enumerate(self.config.layers):
            if isinstance(layer.mlp, MoeSpec):
                experts = self.params["layers"][i]["mlp"]["experts"]
                router, size = layer.mlp.router, sum(leaf.size for leaf in jax.tree.leaves(experts))
                idle += size // router.num_experts * (router.num_experts - router.top_k)
        return self.num_params - idle

    @property
    def is_blocked(self) -> bool:
        """Whether ``layout.for_decoding`` gave some kernels a second form."""
        return self._has(BlockedKernel, BlockedEmbedding)

    @property
    def is_packed(self) -> bool:
        """Whether it packed some."""
        return self._has(PackedKernel, PackedEmbedding)

    def _has(self, *kinds: type) -> bool:
        leaves = jax.tree.leaves(self.params, is_leaf=lambda node: isinstance(node, kinds))
        return any(isinstance(leaf, kinds) for leaf in leaves)

    @property
    def weight_bytes(self) -> int:
        """Each weight once, on however many devices it lies."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self.params))

    @property
    def device_weight_bytes(self) -> int:
        """What one device holds."""
        return device_bytes(self.params)


def blank_model(
    config: ModelConfig,
    *,
    mesh: Mesh,
    dtype: str = "auto",
    max_len: int | None = None,
    room: int | None = None,
) -> Model:
    """The model with the shape, dtype and sharding of each parameter in its place.

    ``dtype`` "auto" is the config's own. ``max_len`` None is the longest context the model was made
    for. ``room``: bytes of each device that may be used, None for no bound.

    Raises:
        ConfigError: a layer that the mesh cannot divide.
        InvalidParameter: a dtype or a length that is not allowed.
        CapacityError: more weights than ``room``.
    """
    model_dtype = jnp.dtype(_checked_dtype(dtype, config))
    length = _checked_len(max_len, config)
    decoder = Decoder(config, dtype=model_dtype, max_len=length, mesh=mesh, rngs=None)
    graph, variables = nnx.split(decoder)
    params = nested(
        {
            path: _placed(path_name(path), variable, mesh)
            for path, variable in nnx.to_flat_state(variables)
        }
    )
    need = device_bytes(params)
    if room is not None and need > room:
        raise CapacityError(
            f"the weights take {need:,} bytes of each device in {model_dtype.name}, and {room:,}"
            " may be used: take a smaller model or dtype, more devices along the model axis, or a"
            " larger memory_utilization"
        )
    return Model(
        config=config, graph=graph, params=params, mesh=mesh, dtype=model_dtype, max_len=length
    )


def path_name(path: tuple) -> str:
    """The name of a parameter in messages and in tables of weights: its path with dots."""
    return ".".join(map(str, path))


def nested(flat: Mapping[tuple, Any]) -> Tree:
    """Paths as nested dicts, the form that ``Model.merge`` takes."""
    root: dict = {}
    for path, leaf in flat.items():
        node = root
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return root


def flat(tree: Tree) -> dict[tuple, Any]:
    """What ``nested`` was made of."""
    if not isinstance(tree, dict):
        return {(): tree}
    return {(key, *path): leaf for key in tree for path, leaf in flat(tree[key]).items()}


def _checked_dtype(dtype: str, config: ModelConfig) -> str:
    if dtype != "auto" and dtype not in DTYPES:
        raise InvalidParameter(f"dtype = {dtype!r} must be auto, {', '.join(DTYPES)}")
    return config.dtype if dtype == "auto" else dtype


def _checked_len(max_len: int | None, config: ModelConfig) -> int:
    if max_len is None:
        return config.max_len
    if not 2 <= max_len <= config.max_len:
        raise InvalidParameter(
            f"max_model_len = {max_len} must be between 2 and the {config.max_len} tokens that"
            " this model was made for"
        )
    return max_len


def _shape_of(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _placed(name: str, variable: nnx.Variable, mesh: Mesh) -> jax.ShapeDtypeStruct:
    """Shape, dtype and sharding of a parameter, from the axes it declares."""
    leaf, axes = variable.get_value(), variable.get_metadata("axes")
    try:
        sharding = named_sharding(mesh, leaf.shape, axes, name=name)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
