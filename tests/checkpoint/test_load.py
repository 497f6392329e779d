"""Tensors that do not fit their parameters are listed, all in one error."""

from collections.abc import Mapping

import pytest

from jaxinfer.errors import ShapeMismatch
from jaxinfer.models.loading import load_model
from sharding import make_mesh
from tests.models.dict_source import DictSource
from tests.models.golden_case import GoldenCase

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
