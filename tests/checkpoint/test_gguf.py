"""A GGUF file reads as the Hugging Face checkpoint it was converted from.

The conversions that llama.cpp's `convert_hf_to_gguf` applies are written out here in its direction,
and the source must undo them.
"""

import gguf
import numpy as np
import pytest

from jaxinfer.checkpoint.gguf import GgufSource
from jaxinfer.checkpoint.known import cached
from jaxinfer.errors import CorruptCheckpoint, Unsupported

HEADS, KV_HEADS, HEAD_DIM, WIDTH, VOCABULARY = 4, 2, 6, 24, 10
RMS = {".attention.layer_norm_rms_epsilon": 1e-5}
LAYER_NORM = {".attention.layer_norm_epsilon": 1e-5}
METADATA = {
    ".context_length": 64,
    ".embedding_length": WIDTH,
    ".feed_forward_length": 40,
    ".block_count": 2,
    ".attention.head_count": HEADS,
    ".attention.head_count_kv": KV_HEADS,
}


def interleave_rope_pairs(weight, heads):
    """llama.cpp's `permute`: the two halves of a head become neighbours."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def group_by_projection(weight):
    """GPT-NeoX's q, k and v of each head, as all q, all k, all v."""
    grouped = weight.reshape(HEADS, 3, -1, *weight.shape[1:])
    return np.concatenate([grouped[:, part].reshape(-1, *weight.shape[1:]) for part in range(3)])


@pytest.fixture
def read_all(write_gguf):
    """Writes tensors to a GGUF file and reads them back by Hugging Face name."""

    def write_and_read(architecture, tensors, metadata):
        with GgufSource(write_gguf(architecture, METADATA | metadata, tensors)) as source:
            for name, info in source.tensors.items():
                array = source.read(name)
                assert (array.shape, array.dtype) == (info.shape, info.dtype)
                index = tuple(slice(1, size // 2 + 1) for size in info.shape)
                np.testing.assert_array_equal(source.read(name, index), array[index], strict=True)
            return {name: source.read(name) for name in source.tensors}

    return write_and_read


@pytest.mark.parametrize("architecture", ["llama", "smollm3", "granite"])
def test_interleaved_rope_is_undone(read_all, random_array, architecture):
    q, k = random_array(HEADS * HEAD_DIM, WIDTH), random_array(KV_HEADS * HEAD_DIM, WIDTH)
    bias = random_array(HEADS * HEAD_DIM)
    tensors = {
        "token_embd.weight": random_array(VOCABULARY, WIDTH),
        "blk.1.attn_q.weight": interleave_rope_pairs(q, HEADS),
        "blk.1.attn_k.weight": interleave_rope_pairs(k, KV_HEADS),
        "blk.1.attn_q.bias": interleave_rope_pairs(bias, HEADS),
        "blk.1.attn_v.weight": k,
    }
    read = read_all(architecture, tensors, RMS)
    prefix = "model.layers.1.self_attn."
    np.testing.assert_array_equal(read[f"{prefix}q_proj.weight"], q)
    np.testing.assert_array_equal(read[f"{prefix}k_proj.weight"], k)
    np.testing.assert_array_equal(read[f"{prefix}q_proj.bias"], bias)
    np.testing.assert_array_equal(read[f"{prefix}v_proj.weight"], k)
    np.testing.assert_array_equal(read["model.embed_tokens.weight"], tensors["token_embd.weight"])


def test_interleaved_rope_is_undone_on_blocks(read_all, random_array):
    kind = gguf.GGMLQuantizationType.Q4_1
    q = random_array(HEADS * HEAD_DIM, 64)
    packed = gguf.quantize(q, kind)
    tensors = {
        "token_embd.weight": random_array(VOCABULARY, WIDTH),
        "blk.0.attn_q.weight": (interleave_rope_pairs(packed, HEADS), kind),
        "blk.0.attn_output.weight": random_array(4, 4),
    }
    read = read_all("llama", tensors, RMS)
    expected = gguf.dequantize(packed, kind)
    np.testing.assert_array_equal(read["model.layers.0.self_attn.q_proj.weight"], expected)


@pytest.mark.parametrize("architecture", ["gemma", "gemma2", "gemma3"])
def test_norms_of_gemma_lose_the_one_that_was_added(read_all, random_array, architecture):
    # Quarters, so that adding and subtracting one is exact.
    norm = np.round(4 * random_array(WIDTH)) / np.float32(4)
    tensors = {
        "token_embd.weight": random_array(VOCABULARY, WIDTH),
        "output_norm.weight": norm + 1,
        "blk.0.attn_norm.weight": norm + 1,
        "blk.0.ffn_norm.weight": norm + 1,
        "blk.0.post_ffw_norm.weight": norm + 1,
        "blk.0.attn_q_norm.weight": norm + 1,
        "blk.0.attn_q.weight": random_array(HEADS * HEAD_DIM, WIDTH),
    }
    read = read_all(architecture, tensors, RMS | {".attention.key_length": HEAD_DIM})
    norms = [n for n in read if n.startswith("model.") and n.endswith("norm.weight")]
    assert len(norms) >= 3
    for name in norms:
        np.testing.assert_array_equal(read[name], norm)
    q = "model.layers.0.self_attn.q_proj.weight"
    np.testing.assert_array_equal(read[q], tensors["blk.0.attn_q.weight"])


def test_linear_weights_of_gpt2_are_transposed(read_all, random_array):
    fused, bias = random_array(WIDTH, 3 * WIDTH), random_array(3 * WIDTH)
    embedding, positions = random_array(VOCABULARY, WIDTH), random_array(64, WIDTH)
    tensors = {
        "token_embd.weight": embedding,
        "position_embd.weight": positions,
        "blk.0.attn_qkv.weight": np.ascontiguousarray(fused.T),
        "blk.0.attn_qkv.bias": bias,
    }
    read = read_all("gpt2", tensors, LAYER_NORM)
    np.testing.assert_array_equal(read["transformer.h.0.attn.c_attn.weight"], fused)
    np.testing.assert_array_equal(read["transformer.h.0.attn.c_attn.bias"], bias)
    np.testing.assert_array_equal(read["transformer.wte.weight"], embedding)
    np.testing.assert_array_equal(read["transformer.wpe.weight"], positions)


def test_fused_projections_of_gpt_neox_are_grouped_by_head(read_all, random_array):
    fused, bias = random_array(3 * WIDTH, WIDTH), random_array(3 * WIDTH)
    tensors = {
        "token_embd.weight": random_array(VOCABULARY, WIDTH),
        "output.weight": random_array(VOCABULARY, WIDTH),
        "blk.0.attn_qkv.weight": group_by_projection(fused),
        "blk.0.attn_qkv.bias": group_by_projection(bias),
    }
    read = read_all("gptneox", tensors, LAYER_NORM | {".rope.dimension_count": 2})
    layer = "gpt_neox.layers.0.attention.query_key_value"
    np.testing.assert_array_equal(read[f"{layer}.weight"], fused)
    np.testing.assert_array_equal(read[f"{layer}.bias"], bias)
    np.testing.assert_array_equal(read["embed_out.weight"], tensors["output.weight"])


@pytest.mark.parametrize(
    ("architecture", "gguf_names", "hf_names"),
    [
        (
            "qwen3",
            ["attn_q_norm.weight", "ffn_norm.weight", "ffn_gate.weight"],
            ["self_attn.q_norm.weight", "post_attention_layernorm.weight", "mlp.gate_proj.weight"],
        ),
        (
            "phi3",
            ["attn_qkv.weight", "ffn_up.weight", "ffn_down.weight"],
            ["self_attn.qkv_proj.weight", "mlp.gate_up_proj.weight", "mlp.down_proj.weight"],
        ),
        (
            "olmo2",
            ["post_attention_norm.weight", "post_ffw_norm.weight"],
            ["post_attention_layernorm.weight", "post_feedforward_layernorm.weight"],
        ),
        (
            "starcoder2",
            ["ffn_up.bias", "ffn_down.weight", "attn_norm.bias"],
            ["mlp.c_fc.bias", "mlp.c_proj.weight", "input_layernorm.bias"],
        ),
    ],
)
def test_names_are_those_of_the_family(read_all, random_array, architecture, gguf_names, hf_names):
    tensors = {f"blk.0.{name}": random_array(8) for name in gguf_names}
    tensors["token_embd.weight"] = random_array(VOCABULARY, WIDTH)
    read = read_all(architecture, tensors, RMS | LAYER_NORM)
    assert set(read) == {"model.embed_tokens.weight", *(f"model.layers.0.{n}" for n in hf_names)}


def test_an_unknown_tensor_keeps_its_name_for_the_loader_to_report(read_all, random_array):
    names = {"blk.0.attn_sinks.weight", "mystery", "a.b.c.weight"}
    tensors = {name: random_array(4) for name in names}
    tensors["token_embd.weight"] = random_array(VOCABULARY, WIDTH)
    assert set(read_all("llama", tensors, RMS)) == names | {"model.embed_tokens.weight"}


def test_stacked_matrices_are_read_by_their_leading_axis(read_all, random_array):
    stack = random_array(3, 5, 7)
    tensors = {"token_embd.weight": random_array(VOCABULARY, WIDTH), "stack": stack}
    np.testing.assert_array_equal(
        read_all("llama", tensors, RMS | {".block_count": 1})["stack"], stack
    )


def test_rows_that_do_not_fit_the_heads_are_refused(write_gguf, random_array):
    tensors = {
        "token_embd.weight": random_array(VOCABULARY, WIDTH),
        "blk.0.attn_q.weight": random_array(HEADS * HEAD_DIM + 1, WIDTH),
    }
    with pytest.raises(CorruptCheckpoint, match=r"25 rows, not a multiple of 8 \(4 heads\)"):
        GgufSource(write_gguf("llama", METADATA | RMS, tensors))


def test_a_part_of_a_split_model_is_refused(write_gguf, random_array):
    tensors = {"token_embd.weight": random_array(VOCABULARY, WIDTH)}
    with pytest.raises(Unsupported, match="one of several parts"):
        GgufSource(write_gguf("llama", METADATA | RMS | {"split.count": 3}, tensors))


@pytest.mark.real_model
def test_the_embedded_default_reads_as_the_gguf_package_reads_it():
    path = cached("smollm2-135m")
    if path is None:
        pytest.skip("smollm2-135m has not been pulled")
    peers = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    with GgufSource(path) as source:
        assert len(source.tensors) == len(peers) == 272
        assert source.config["num_hidden_layers"] == 30
        assert len(source.metadata["tokenizer.ggml.tokens"]) == 49_152
        for name, heads in {"attn_q": 9, "attn_k": 3, "attn_v": None}.items():
            peer = peers[f"blk.7.{name}.weight"]
            ours = source.read(f"model.layers.7.self_attn.{name[-1]}_proj.weight")
            stored = ours if heads is None else interleave_rope_pairs(ours, heads)
            np.testing.assert_array_equal(stored, gguf.dequantize(peer.data, peer.tensor_type))
