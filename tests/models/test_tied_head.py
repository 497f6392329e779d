"""A head that is the embeddings, or is said to be: what the checkpoint holds decides."""

import logging
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxinfer.checkpoint.source import Index
from jaxinfer.errors import MissingParameters, ShapeMismatch
from jaxinfer.models import tied_head
from jaxinfer.models.loading import load_model, restore_model, save_model
from jaxinfer.models.tied_head import checkpoint_config
from sharding import make_mesh
from tests.golden.models.seeded import seeded_tensor
from tests.models.dict_source import DictSource
from tests.models.golden_case import GoldenCase

#: A case that is tied, its embeddings, and the head that its files do not have.
TIED = [
    ("llama", "model.embed_tokens.weight", "lm_head.weight"),
    ("gpt2", "transformer.wte.weight", "lm_head.weight"),
    ("mistral3", "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"),
]
LLAMA = GoldenCase("llama")
EMBEDDING, HEAD = TIED[0][1:]


class WithCopy(DictSource):
    """A checkpoint in which ``copy`` is a copy of ``original``, which may be absent itself."""

    def __init__(self, case: GoldenCase, original: str, copy: str, *, both: bool = True):
        shapes = dict(case.shapes)
        shapes[copy] = shapes[original] if both else shapes.pop(original)
        super().__init__(case.config, shapes)
        self._copy, self._numbers = copy, seeded_tensor(original, shapes[copy])

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        if name != self._copy:
            return super().read(name, index)
        return self._numbers[... if index is None else index].copy()


def with_head(shape: tuple[int, ...]) -> DictSource:
    return DictSource(LLAMA.config, {**LLAMA.shapes, HEAD: shape})


@pytest.mark.parametrize(("name", "embedding", "head"), TIED)
def test_a_copy_of_the_embeddings_is_no_head(name, embedding, head):
    case = GoldenCase(name)
    source = WithCopy(case, embedding, head)
    assert checkpoint_config(source) == checkpoint_config(case.source)
    with_copy, without = (load_model(s, mesh=make_mesh()) for s in (source, case.source))
    assert with_copy.num_params == without.num_params


@pytest.mark.parametrize(("name", "embedding", "head"), TIED)
def test_embeddings_under_the_name_of_the_head_are_both(name, embedding, head):
    case = GoldenCase(name)
    found = load_model(WithCopy(case, embedding, head, both=False), mesh=make_mesh())
    expected = load_model(case.source, mesh=make_mesh())
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


@pytest.mark.parametrize(("name", "embedding", "head"), TIED)
def test_a_head_that_differs_is_one_and_it_is_said(name, embedding, head, caplog):
    case = GoldenCase(name)
    source = DictSource(case.config, {**case.shapes, head: case.shapes[embedding]})
    with caplog.at_level(logging.WARNING):
        model = load_model(source, mesh=make_mesh(), dtype="float32")
    assert not model.config.tied_head
    np.testing.assert_array_equal(model.params["head"]["kernel"], source.read(head).T)
    assert f"tie_word_embeddings is true, and yet {head} differs from {embedding}" in caplog.text


def test_what_differs_in_its_last_row_differs(monkeypatch):
    source = WithCopy(LLAMA, EMBEDDING, HEAD)
    monkeypatch.setattr(tied_head, "_CHUNK_BYTES", 1000)
    asked, read = [], source.read

    def with_other_end(name: str, index: Index | None = None) -> np.ndarray:
        rows = read(name, index)
        if name == HEAD:
            asked.append(rows.shape[0])
            rows[-1, -1] += sum(asked) == 128
        return rows

    monkeypatch.setattr(source, "read", with_other_end)
    assert not checkpoint_config(source).tied_head
    assert sum(asked) == 128
    assert max(asked) == 5  # rows of 192 bytes


def test_a_head_of_another_shape_does_not_fit():
    with pytest.raises(ShapeMismatch, match=r"head\.kernel.*lm_head\.weight gives \(4, 4\)"):
        load_model(with_head((4, 4)), mesh=make_mesh())


def test_a_head_that_is_not_tied_has_to_be_there():
    untied = DictSource({**LLAMA.config, "tie_word_embeddings": False}, LLAMA.shapes)
    with pytest.raises(MissingParameters, match=r"head\.kernel: from lm_head\.weight"):
        load_model(untied, mesh=make_mesh())


def test_a_model_with_a_head_of_its_own_is_saved_as_one(tmp_path: Path):
    saved = load_model(with_head((128, 48)), mesh=make_mesh())
    save_model(saved, tmp_path / "model", LLAMA.config)
    restored = restore_model(tmp_path / "model", mesh=make_mesh())
    assert restored.config == saved.config
    jax.tree.map(np.testing.assert_array_equal, restored.params, saved.params)
