"""Which tensor of a checkpoint fills which parameter: a `WeightRule` each, a `Family` for all.

A name with ``{i}`` in it stands for all layers, one with ``{e}`` for all experts or heads. The
orientation changes on the way: Hugging Face keeps a linear layer as ``[out, in]``, our kernels are
``[in, out]``.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from jaxinfer.checkpoint.load import Recipe, Stack
from jaxinfer.checkpoint.source import Index
from jaxinfer.config import LayerSpec, ModelConfig, MoeSpec, NormSpec
from jaxinfer.models.hf_config import HARMLESS, HfConfig


@dataclass(frozen=True, kw_only=True)
class WeightRule:
    """How one parameter, or the same one of every layer, is made from a tensor of the checkpoint.

    Attributes:
        target: path of our parameter, ``{i}`` standing for the layer.
        source: Hugging Face name of the tensor, likewise. With ``{e}`` in it, which stands for the
            expert, the tensors of all experts of a layer are stacked.
        pieces: how many tensors ``{e}`` stands for in a layer, where they are not the experts.
        rows: the rows of a fused tensor to read, from config and layer; None reads all.
        is_stacked: the tensor holds a matrix for each expert: ``rows`` are those of each of them.
        transform: what was read -> our parameter, with config and layer. None: kernels are
            transposed, everything else stays as it is.
        where: in which layers the parameter is; None: in all.
    """

    target: str
    source: str
    rows: Callable[[ModelConfig, int], slice] | None = None
    is_stacked: bool = False
    transform: Callable[[np.ndarray, ModelConfig, int], np.ndarray] | None = None
    where: Callable[[LayerSpec], bool] | None = None
    pieces: Callable[[LayerSpec], int] | None = None

    def names(self, config: ModelConfig) -> Iterator[tuple[int, str, tuple[str, ...]]]:
        """Layer, parameter path and tensor names; layer 0 for what stands outside the layers."""
        layers = config.layers if "{i}" in self.target else config.layers[:1]
        for i, spec in enumerate(layers):
            if self.where is not None and not self.where(spec):
                continue
            count = 1
            if "{e}" in self.source:
                count = _num_experts(spec) if self.pieces is None else self.pieces(spec)
            sources = tuple(self.source.format(i=i, e=e) for e in range(count))
            yield i, self.target.format(i=i), sources

    def index(self, config: ModelConfig, layer: int) -> Index | None:
        """The part of the tensor to read; None for all of it."""
        if self.rows is None:
            return None
        rows = self.rows(config, layer)
        return (slice(None), rows) if self.is_stacked else (rows,)

    def to_parameter(self, tensor: np.ndarray, config: ModelConfig, layer: int) -> np.ndarray:
        """Our parameter from the rows that were read."""
        if self.transform is not None:
            return self.transform(tensor, config, layer)
        is_kernel = self.target.endswith(".kernel") and tensor.ndim == 2 + self.is_stacked
        return tensor.swapaxes(-1, -2) if is_kernel else tensor


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of models: how its config reads, and what its tensors are called.

    Attributes:
        name: ours.
        model_types: the ``model_type`` values of its configs.
        read: a config -> the decoder; it may leave fields unread that are harmless.
        weights: one rule for every parameter of that decoder.
        defaults: what a config means where it leaves a field out.
        ignored_fields: config fields that change no logit, beyond ``HARMLESS``.
        ignored_tensors: patterns of canonical names of tensors that no parameter needs: buffers,
            the copy of a tied head.
        renamed: pattern and replacement for names that other writers give the same tensors.
    """

    name: str
    model_types: tuple[str, ...]
    read: Callable[[HfConfig], ModelConfig]
    weights: Callable[[ModelConfig], Iterable[WeightRule]]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    ignored_fields: frozenset[str] = frozenset()
    ignored_tensors: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()

    def translate(self, config: Mapping[str, Any]) -> ModelConfig:
        """The decoder that a ``config.json`` describes.

        Raises:
            ConfigError: a field that is unknown, missing, or has a value that is not allowed.
            Unsupported: a field that asks for what this build cannot do.
        """
        fields = HfConfig(config, defaults=self.defaults)
        model = self.read(fields)
        fields.refuse_unread(HARMLESS | self.ignored_fields)
        return model

    def canonical_name(self, tensor: str) -> str:
        """The name the rules use for a tensor of a checkpoint."""
        for pattern, replacement in self.renamed:
            tensor = re.sub(pattern, replacement, tensor)
        return tensor

    def ignores(self, tensor: str) -> bool:
        """Whether no parameter needs the tensor of this canonical name."""
        return any(re.fullmatch(pattern, tensor) for pattern in self.ignored_tensors)

    def outer_names(self, config: ModelConfig) -> tuple[str, str]:
        """The canonical names of the embeddings, and of the head where it is not tied to them."""
        rules = self.weights(replace(config, tied_head=False))
        sources = {rule.target: rule.source for rule in rules}
        return sources["embed.embedding"], sources["head.kernel"]


def stored_names(family: Family, tensors: Iterable[str]) -> dict[str, str]:
    """Canonical name -> name in the checkpoint."""
    return {family.canonical_name(name): name for name in tensors}


def recipes(
    family: Family, config: ModelConfig, tensors: Iterable[str] = ()
) -> Iterator[Recipe | Stack]:
    """The rules of a family for every layer of ``config``, as the loader follows them.

    ``tensors`` are the names in the checkpoint, which may be other writers' names.
    """
    stored = stored_names(family, tensors)
    if config.tied_head:
        # Some writers keep the one matrix under the name of the head.
        embedding, head = family.outer_names(config)
        if head in stored:
            stored.setdefault(embedding, stored[head])
    for rule in family.weights(config):
        for layer, target, sources in rule.names(config):
            parts = tuple(
                Recipe(
                    target=target,
                    source=stored.get(source, source),
                    index=rule.index(config, layer),
                    transform=partial(rule.to_parameter, config=config, layer=layer),
                )
                for source in sources
            )
            yield Stack(target=target, parts=parts) if "{e}" in rule.source else parts[0]


def _num_experts(spec: LayerSpec) -> int:
    assert isinstance(spec.mlp, MoeSpec), "`where` leaves out layers without experts"
    return spec.mlp.router.num_experts


def only_where(
    where: Callable[[LayerSpec], bool], rules: Iterable[WeightRule]
) -> Iterator[WeightRule]:
    """The rules, for some of the layers only."""
    for rule in rules:
        yield replace(rule, where=where)


def embedding(target: str, source: str) -> WeightRule:
    """A table of embeddings, ``[V, D]`` on both sides."""
    return WeightRule(target=f"{target}.embedding", source=f"{source}.weight")


def linear(
    target: str,
    source: str,
    *,
    bias: bool = False,
    rows: Callable[[ModelConfig, int], slice] | None = None,
) -> Iterator[WeightRule]:
    """The kernel, and the bias where there is one; both are cut out of the same rows."""
    yield WeightRule(target=f"{target}.kernel", source=f"{source}.weight", rows=rows)
    if bias:
        yield WeightRule(target=f"{target}.bias", source=f"{source}.bias", rows=rows)


def norm(target: str, source: str, spec: NormSpec | None) -> Iterator[WeightRule]:
    """Scale and bias of a norm; nothing where there is none."""
    if spec is None:
        return
    if spec.weight:
        yield WeightRule(target=f"{target}.scale", source=f"{source}.weight")
    if spec.bias:
        yield WeightRule(target=f"{target}.bias", source=f"{source}.bias")
