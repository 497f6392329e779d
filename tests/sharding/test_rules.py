"""spec: logical axes to a PartitionSpec, and the refusals."""

import pytest
from jax.sharding import PartitionSpec

from sharding import DEFAULT_RULES, spec


def test_each_axis_goes_where_its_rule_says():
    assert spec(("embed", "heads", "head_dim")) == PartitionSpec(None, "model", None)
    assert spec(("vocab", "embed")) == PartitionSpec("model", None)


def test_an_axis_without_a_name_is_never_split():
    assert spec((None, "mlp")) == PartitionSpec(None, "model")


def test_a_scalar_has_an_empty_spec():
    assert spec(()) == PartitionSpec()


def test_a_rule_may_name_several_mesh_axes():
    assert spec(("mlp",), {"mlp": ("data", "model")}) == PartitionSpec(("data", "model"))


def test_changed_rules_leave_the_defaults_as_they_were():
    changed = DEFAULT_RULES | {"kv_heads": None}
    assert spec(("kv_heads",), changed) == PartitionSpec(None)
    assert spec(("kv_heads",)) == PartitionSpec("model")


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"wq: unknown logical axes \['head'\].*heads.*add a rule"):
        spec(("embed", "head"), name="wq")


@pytest.mark.parametrize(
    "rules", [DEFAULT_RULES, {"heads": ("data", "model"), "mlp": "model"}], ids=["one", "several"]
)
def test_two_axes_on_one_mesh_axis_are_refused(rules):
    with pytest.raises(ValueError, match=r"w: more than one axis of .* goes to mesh axis 'model'"):
        spec(("heads", "mlp"), rules, name="w")
