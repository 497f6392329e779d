"""One table from logical axes to mesh axes.

A weight says what its axes *are* (``("embed", "heads", "head_dim")``), once, where it is declared.
The table here says where an axis of that name *goes*. To lay out a model differently, change it:
``DEFAULT_RULES | {"kv_heads": None}`` keeps the key and value heads whole on every device.
"""

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType

from jax.sharding import PartitionSpec

#: Where a logical axis goes: one mesh axis, several (the first varies slowest), or None (nowhere).
MeshAxis = str | tuple[str, ...] | None
Rules = Mapping[str, MeshAxis]
#: The logical names of an array's axes; None for an axis that is never split.
LogicalAxes = tuple[str | None, ...]

#: Tensor parallelism (arXiv 1909.08053): heads, mlp and vocabulary are split, the width is not.
DEFAULT_RULES: Rules = MappingProxyType(
    {
        "batch": "data",
        "embed": None,
        "vocab": "model",
        "heads": "model",
        "kv_heads": "model",
        "head_dim": None,
        "mlp": "model",
        # Whole, each split along its mlp axis: all devices are equally busy, wherever tokens go.
        "experts": None,
        "layers": None,
        "latent": None,
        "pages": None,
        "slots": None,
        "tokens": None,
    }
)


def mesh_axes(rule: MeshAxis) -> tuple[str, ...]:
    """The mesh axes of one rule, none, one or several, as a tuple."""
    if rule is None:
        return ()
    return (rule,) if isinstance(rule, str) else rule


def spec(axes: LogicalAxes, rules: Rules = DEFAULT_RULES, *, name: str = "array") -> PartitionSpec:
    """The PartitionSpec of an array whose axes have these logical names.

    Args:
        axes: one logical name (or None) an axis.
        rules: where each logical name goes.
        name: what the array is called, for the error.

    Raises:
        ValueError: a name that the rules do not have, or two axes that go to the same mesh axis.
    """
    unknown = [axis for axis in axes if axis is not None and axis not in rules]
    if unknown:
        raise ValueError(
            f"{name}: unknown logical axes {unknown} in {axes}; the rules know"
            f" {', '.join(sorted(rules))}: correct the name, or add a rule for it"
        )
    placed = [None if axis is None else rules[axis] for axis in axes]
    uses = Counter(mesh_axis for rule in placed for mesh_axis in mesh_axes(rule))
    twice = [mesh_axis for mesh_axis, count in uses.items() if count > 1]
    if twice:
        raise ValueError(
            f"{name}: more than one axis of {axes} goes to mesh axis"
            f" {', '.join(map(repr, twice))}: map all but one of them to None in the rules"
        )
    return PartitionSpec(*placed)
