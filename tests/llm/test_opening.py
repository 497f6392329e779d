"""A model's name leads to its config, its dtype and its tokenizer."""

import json
from contextlib import closing

import gguf
import jax
import numpy as np
import pytest
import safetensors.numpy

from jaxinfer import LLM
from jaxinfer.checkpoint.gguf import GgufSource
from jaxinfer.checkpoint.load import no_progress
from jaxinfer.errors import (
    CapacityError,
    CorruptCheckpoint,
    InvalidParameter,
    ModelNotFound,
    TokenizerError,
)
from jaxinfer.llm.opening import is_architecture, open_model
from jaxinfer.models.loading import dummy_model, save_model
from jaxinfer.models.registry import model_config
from sharding import make_mesh
from tests.golden.models.seeded import seeded_tensor
from tests.llm.tiny_model import write_tiny_model
from tests.models.golden_case import GoldenCase


def write_gguf(path, matrix_type):
    """A one-layer llama without a tokenizer, its matrices stored as ``matrix_type``."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(8)
    shapes = {"attn_q": 32, "attn_k": 16, "attn_v": 16, "attn_output": 32}
    shapes |= {"ffn_gate": 32, "ffn_up": 32, "ffn_down": 32}
    tensors = {f"blk.0.{name}.weight": (rows, 32) for name, rows in shapes.items()}
    for name, shape in ({"token_embd.weight": (8, 32)} | tensors).items():
        data = gguf.quants.quantize(np.ones(shape, np.float32), matrix_type)
        writer.add_tensor(name, data, raw_dtype=matrix_type)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("stored", "dtype"),
    [("F32", "float32"), ("F16", "float16"), ("BF16", "bfloat16"), ("Q8_0", "bfloat16")],
)
def test_a_gguf_file_has_the_dtype_of_its_matrices_and_bfloat16_for_quantised_ones(
    tmp_path, stored, dtype
):
    path = write_gguf(tmp_path / "model.gguf", gguf.GGMLQuantizationType[stored])
    opened = open_model(path, skip_tokenizer=True)
    opened.close()
    assert opened.config.dtype == dtype
    assert opened.tokenizer is None


def test_a_gguf_file_without_a_vocabulary_needs_a_tokenizer(tmp_path, tiny_directory):
    path = write_gguf(tmp_path / "model.gguf", gguf.GGMLQuantizationType.F32)
    with pytest.raises(TokenizerError, match=r"model\.gguf"):
        open_model(path)
    opened = open_model(path, tokenizer=tiny_directory)
    opened.close()
    assert opened.tokenizer.decode(opened.tokenizer.encode("text")) == "text"


def test_random_weights_need_a_config_only(tiny_directory, tmp_path):
    assert open_model(tiny_directory, load_format="dummy").tokenizer is not None
    (tmp_path / "config.json").write_text((tiny_directory / "config.json").read_text())
    assert open_model(tmp_path, load_format="dummy").tokenizer is None
    assert open_model("llama-3.1-8b", load_format="dummy").config.width == 4096


def test_a_directory_without_weights_is_no_model_unless_they_are_random(tiny_directory):
    with pytest.raises(ModelNotFound, match="safetensors"):
        open_model(tiny_directory)
    with pytest.raises(ModelNotFound, match=r"llama-3\.1-8b"):
        open_model("unheard-of", load_format="dummy")


def test_the_name_of_an_architecture_needs_random_weights_and_the_error_says_how():
    with pytest.raises(ModelNotFound, match=r"'llama-3\.1-8b'.*load_format = 'dummy'"):
        open_model("llama-3.1-8b")
    assert not is_architecture("gemma3-270m")  # which can be had
    assert not is_architecture("unheard-of")


def test_the_home_of_nobody_holds_neither_model_nor_tokenizer(tiny_directory):
    with pytest.raises(ModelNotFound, match="~no-such-user"):
        open_model("~no-such-user/m", load_format="dummy")
    with pytest.raises(ModelNotFound, match="~no-such-user"):
        open_model(tiny_directory, load_format="dummy", tokenizer="~no-such-user/t")


def test_a_config_that_is_no_json_is_a_corrupt_checkpoint(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CorruptCheckpoint, match="not JSON"):
        open_model(tmp_path, load_format="dummy")


def test_an_orbax_checkpoint_opens_with_the_weights_that_were_saved(tmp_path):
    path = write_tiny_model(tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    mesh = make_mesh()
    saved = dummy_model(model_config(config), mesh=mesh, seed=5)
    save_model(saved, path, config)
    opened = open_model(path)
    blank = opened.blank(mesh=mesh, dtype="auto", max_len=None)
    model = opened.load(blank, seed=0, progress=no_progress)
    assert opened.tokenizer is not None
    jax.tree.map(np.testing.assert_array_equal, model.params, saved.params)


def test_a_head_that_is_tied_in_the_config_alone_is_opened_as_one(tmp_path):
    case = GoldenCase("llama")
    shapes = {**case.shapes, "lm_head.weight": case.shapes["model.embed_tokens.weight"]}
    tensors = {name: seeded_tensor(name, shape) for name, shape in shapes.items()}
    (tmp_path / "config.json").write_text(json.dumps(case.config))
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    with closing(open_model(tmp_path, skip_tokenizer=True)) as opened:
        assert not opened.config.tied_head


def test_what_fails_after_opening_closes_the_source(tmp_path, tiny_directory, monkeypatch):
    path = write_gguf(tmp_path / "model.gguf", gguf.GGMLQuantizationType.F32)
    closed, close = [], GgufSource.close

    def noted_close(source):
        closed.append(source)
        close(source)

    monkeypatch.setattr(GgufSource, "close", noted_close)
    with pytest.raises(TokenizerError):
        open_model(path)
    assert len(closed) == 1
    with pytest.raises(InvalidParameter, match="2 devices cannot share num_kv_heads = 1"):
        LLM(path, skip_tokenizer_init=True, tensor_parallel_size=2)
    assert len(closed) == 2
    open_model(path, skip_tokenizer=True)
    assert len(closed) == 2


def test_weights_without_room_are_not_read_and_the_source_is_closed(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "model.gguf", gguf.GGMLQuantizationType.F32)
    closed, close = [], GgufSource.close
    monkeypatch.setattr(GgufSource, "read", None)
    monkeypatch.setattr(GgufSource, "close", lambda source: closed.append(close(source)))
    with pytest.raises(CapacityError, match="the weights take"):
        LLM(path, skip_tokenizer_init=True, memory_utilization=1e-9)
    assert closed
