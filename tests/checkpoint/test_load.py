"""Tensors become parameters; those that do not fit are listed, all in one error."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.checkpoint.load import Recipe, Stack, load_params
from jaxinfer.checkpoint.source import Index
from jaxinfer.errors import MissingParameters, ShapeMismatch, UnexpectedTensors
from jaxinfer.models.loading import load_model
from sharding import make_mesh
from tests.models.dict_source import DictSource
from tests.models.golden_case import GoldenCase

EXPERT = "model.layers.2.block_sparse_moe.experts"
FUSED = "gpt_neox.layers.0.attention.query_key_value"


def load(name: str, changed: Mapping[str, tuple[int, ...]]) -> None:
    case = GoldenCase(name)
    assert set(changed) <= set(case.shapes)
    source = DictSource(case.config, case.shapes | changed)
    load_model(source, mesh=make_mesh(), dtype="float32")


@pytest.mark.parametrize("shape", [(), (7,), (7, 64), (95, 64), (0, 64)])
def test_a_fused_tensor_that_cannot_be_cut_up_is_listed_with_the_other_shapes(
    shape: tuple[int, ...],
) -> None:
    wrong = {f"{FUSED}.weight": shape, f"{FUSED}.bias": (5,), "gpt_neox.embed_in.weight": (3, 3)}
    with pytest.raises(ShapeMismatch) as refused:
        load("gpt_neox", wrong)
    first, *lines = str(refused.value).splitlines()
    assert first == "seeded: wrong shapes (7):"
    for part in "qkv":
        for leaf, found in (("kernel", shape), ("bias", (5,))):
            place = f"layers.0.mixer.{part}.{leaf}: {FUSED}."
            [line] = [line.strip() for line in lines if line.strip().startswith(place)]
            assert f"has the shape {found}" in line
    assert sum("gpt_neox.embed_in.weight gives (3, 3)" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("gpt2", "transformer.h.0.attn.c_attn.weight"),
        ("phi3", "model.layers.0.self_attn.qkv_proj.weight"),
    ],
)
def test_a_fused_tensor_without_axes_is_a_wrong_shape(name: str, tensor: str) -> None:
    with pytest.raises(ShapeMismatch, match=rf"wrong shapes \(3\)[^#]*{tensor} has the shape \(\)"):
        load(name, {tensor: ()})


@pytest.mark.parametrize("shape", [(), (48,), (48, 80), (2, 80, 48)])
def test_experts_of_different_shapes_are_listed_by_the_one_that_differs(shape) -> None:
    with pytest.raises(ShapeMismatch, match=rf"wrong shapes \(1\)[^#]*{EXPERT}\.3\.w1\.weight"):
        load("mixtral", {f"{EXPERT}.3.w1.weight": shape})


def test_experts_that_are_all_of_the_wrong_shape_are_one_wrong_parameter() -> None:
    wrong = {f"{EXPERT}.{e}.w1.weight": (96, 48) for e in range(4)}
    place, found = r"\(4, 48, 80\) wanted", r"3\.w1\.weight gives \(4, 48, 96\)"
    with pytest.raises(ShapeMismatch, match=rf"wrong shapes \(1\)[^#]*{place}, .*{found}"):
        load("mixtral", wrong)


def test_each_expert_that_is_missing_is_listed_and_each_that_is_too_many() -> None:
    case = GoldenCase("mixtral")
    shapes = {name: shape for name, shape in case.shapes.items() if f"{EXPERT}.1." not in name}
    with pytest.raises(MissingParameters, match=rf"without a tensor \(3\)[^#]*{EXPERT}\.1\.w3"):
        load_model(DictSource(case.config, shapes), mesh=make_mesh())
    shapes = {**case.shapes, f"{EXPERT}.4.w1.weight": (80, 48)}
    with pytest.raises(UnexpectedTensors, match=rf"{EXPERT}\.4\.w1\.weight"):
        load_model(DictSource(case.config, shapes), mesh=make_mesh())


@pytest.mark.parametrize("shape", [(), (5,), (5, 64), (4, 64, 48), (5, 63, 48)])
def test_experts_stacked_in_the_checkpoint_that_cannot_be_cut_up_are_listed(shape) -> None:
    tensor = "model.layers.0.block_sparse_moe.input_linear.weight"
    with pytest.raises(ShapeMismatch, match=rf"{tensor} (has the shape|gives) \("):
        load("granitemoe", {tensor: shape})


class CountingSource(DictSource):
    """Remembers which tensors were read."""

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """See `Source.read`."""
        self.names = [*getattr(self, "names", []), name]
        return super().read(name, index)


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "gpt_oss", "llama4"])
def test_each_tensor_is_read_once(name: str) -> None:
    case = GoldenCase(name)
    source = CountingSource(case.config, case.shapes)
    load_model(source, mesh=make_mesh())
    assert sorted(source.names) == sorted(case.shapes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_matrices_that_are_turned_arrive_whole_however_wide(dtype: str) -> None:
    source = DictSource({}, {"a": (300, 5), "b": (300, 5), "c": (2, 257, 3)})
    rules = [
        Recipe(target="one", source="a", transform=np.transpose),
        Stack(
            target="two",
            parts=tuple(Recipe(target="two", source=s, transform=np.transpose) for s in "ab"),
        ),
        Recipe(target="three", source="c", transform=lambda tensor: tensor.swapaxes(1, 2)),
    ]
    a, b, c = (source.read(name).astype(jnp.dtype(dtype)) for name in "abc")
    expected = {"one": a.T, "two": np.stack((a.T, b.T)), "three": c.swapaxes(1, 2)}
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = {
        path: jax.ShapeDtypeStruct(array.shape, dtype, sharding=where)
        for path, array in expected.items()
    }
    params = load_params(source, rules, abstract)
    for path, array in expected.items():
        np.testing.assert_array_equal(params[path], array)
