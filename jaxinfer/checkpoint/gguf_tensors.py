"""GGUF tensor names and layouts, as Hugging Face has them.

llama.cpp's converter renames every tensor and rearranges some. Here is the way back: one table of
names a family, and the three rearrangements, each undone while reading:

- **row order**: q and k of the families whose rotary pairs llama.cpp wants side by side; the fused
  q, k, v of GPT-NeoX, which Hugging Face groups by head.
- **transposed**: the Conv1D weights of GPT-2 are ``[in, out]`` in Hugging Face.
- **offset**: Gemma's norms hold ``w`` in Hugging Face and ``1 + w`` in GGUF.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxinfer.checkpoint.gguf_file import StoredTensor
from jaxinfer.errors import CorruptCheckpoint
from jaxinfer.shapes import Shape

_BLOCK = re.compile(r"blk\.(\d{1,6})\.(\w+)\.(weight|bias)")
_OUTER = re.compile(r"(\w+)\.(weight|bias)")
#: Tensors that are rope frequencies: the config carries what they say.
CONFIG_TENSORS = frozenset(
    {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
)

_LLAMA_OUTER = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LLAMA_ATTENTION = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}
_LLAMA_MLP = {
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LLAMA_BLOCK = {
    "attn_norm": "input_layernorm",
    **_LLAMA_ATTENTION,
    "ffn_norm": "post_attention_layernorm",
    **_LLAMA_MLP,
}
_GEMMA2_BLOCK = {
    **_LLAMA_BLOCK,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_OLMO2_BLOCK = {
    **_LLAMA_ATTENTION,
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    **_LLAMA_MLP,
}
_PHI3_BLOCK = {
    **_LLAMA_BLOCK,
    "attn_qkv": "self_attn.qkv_proj",
    "ffn_up": "mlp.gate_up_proj",
}
_STARCODER2_BLOCK = {**_LLAMA_BLOCK, "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}


@dataclass(frozen=True, kw_only=True)
class _Family:
    """Names of one family: outside the layers, the prefix of a layer, inside a layer."""

    outer: Mapping[str, str]
    layer: str
    block: Mapping[str, str]
    interleaved_rope: bool = False
    fused_qkv_by_head: bool = False
    transposed: frozenset[str] = frozenset()
    norm_offset: float = 0.0


def _llama_like(block: Mapping[str, str] = _LLAMA_BLOCK, **kwargs: Any) -> _Family:
    return _Family(outer=_LLAMA_OUTER, layer="model.layers.{}.", block=block, **kwargs)


_FAMILIES = {
    "llama": _llama_like(interleaved_rope=True),
    "smollm3": _llama_like(interleaved_rope=True),
    "granite": _llama_like(interleaved_rope=True),
    "qwen2": _llama_like(),
    "qwen3": _llama_like(),
    "gemma": _llama_like(norm_offset=1.0),
    "gemma2": _llama_like(_GEMMA2_BLOCK, norm_offset=1.0),
    "gemma3": _llama_like(_GEMMA2_BLOCK, norm_offset=1.0),
    "olmo2": _llama_like(_OLMO2_BLOCK),
    "phi3": _llama_like(_PHI3_BLOCK),
    "starcoder2": _llama_like(_STARCODER2_BLOCK),
    "gptneox": _Family(
        outer={
            "token_embd": "gpt_neox.embed_in",
            "output_norm": "gpt_neox.final_layer_norm",
            "output": "embed_out",
        },
        layer="gpt_neox.layers.{}.",
        block={
            "attn_norm": "input_layernorm",
            "attn_qkv": "attention.query_key_value",
            "attn_output": "attention.dense",
            "ffn_norm": "post_attention_layernorm",
            "ffn_up": "mlp.dense_h_to_4h",
            "ffn_down": "mlp.dense_4h_to_h",
        },
        fused_qkv_by_head=True,
    ),
    "gpt2": _Family(
        outer={
            "token_embd": "transformer.wte",
            "position_embd": "transformer.wpe",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
        },
        layer="transformer.h.{}.",
        block={
            "attn_norm": "ln_1",
            "attn_qkv": "attn.c_attn",
            "attn_output": "attn.c_proj",
            "ffn_norm": "ln_2",
            "ffn_up": "mlp.c_fc",
            "ffn_down": "mlp.c_proj",
        },
        transposed=frozenset({"attn_qkv", "attn_output", "ffn_up", "ffn_down"}),
    ),
}


@dataclass(frozen=True, kw_only=True)
class HfTensor:
    """A stored tensor as Hugging Face knows it.

    Attributes:
        name: the Hugging Face name; the GGUF name where the family has no such tensor.
        stored: the tensor in the file.
        row_groups: sizes of the three nested groups the stored rows fall into; None where Hugging
            Face has the rows in the same order.
        row_axes: the transposition of those groups that gives Hugging Face's order.
        transposed: the two axes change places.
        offset: subtracted from the stored numbers.
    """

    name: str
    stored: StoredTensor
    row_groups: Shape | None = None
    row_axes: Shape = ()
    transposed: bool = False
    offset: float = 0.0

    @property
    def shape(self) -> Shape:
        return self.stored.shape[::-1] if self.transposed else self.stored.shape

    def row_order(self) -> np.ndarray | None:
        """For each Hugging Face row the stored row, ``[rows]``; None: the same order."""
        if self.row_groups is None:
            return None
        stored = np.arange(self.stored.shape[0]).reshape(self.row_groups)
        return stored.transpose(self.row_axes).reshape(-1)


def hf_tensors(
    tensors: Mapping[str, StoredTensor], architecture: str, config: Mapping[str, Any]
) -> dict[str, HfTensor]:
    """All weights of a GGUF file by their Hugging Face names.

    Args:
        tensors: the tensor table of the file.
        architecture: ``general.architecture``, one that `gguf_metadata` translates.
        config: the translated config; the head counts are taken from it.

    Raises:
        CorruptCheckpoint: rows that cannot be split into the heads of the config, or two tensors of
            one Hugging Face name.
    """
    family = _FAMILIES[architecture]
    found: dict[str, HfTensor] = {}
    for stored in tensors.values():
        if stored.name in CONFIG_TENSORS:
            continue
        tensor = _hf_tensor(stored, family, config)
        if tensor.name in found:
            raise CorruptCheckpoint(
                f"{stored.name!r} and {found[tensor.name].stored.name!r} are both {tensor.name!r}"
            )
        found[tensor.name] = tensor
    return found


def _hf_tensor(stored: StoredTensor, family: _Family, config: Mapping[str, Any]) -> HfTensor:
    if match := _BLOCK.fullmatch(stored.name):
        number, part, kind = match.groups()
        prefix, names = family.layer.format(int(number)), family.block
    elif match := _OUTER.fullmatch(stored.name):
        part, kind = match.groups()
        prefix, names = "", family.outer
    else:
        return HfTensor(name=stored.name, stored=stored)
    if part not in names:
        return HfTensor(name=stored.name, stored=stored)
    name = f"{prefix}{names[part]}.{kind}"
    if family.norm_offset and name.endswith("norm.weight"):
        return HfTensor(name=name, stored=stored, offset=family.norm_offset)
    if part in family.transposed and kind == "weight":
        _require_matrix(stored)
        return HfTensor(name=name, stored=stored, transposed=True)
    if family.interleaved_rope and part in ("attn_q", "attn_k"):
        heads = config["num_attention_heads" if part == "attn_q" else "num_key_value_heads"]
        # Stored: head, pair, half. Hugging Face: head, half, pair.
        groups = _row_groups(stored, heads, (heads, -1, 2))
        return HfTensor(name=name, stored=stored, row_groups=groups, row_axes=(0, 2, 1))
    if family.fused_qkv_by_head and part == "attn_qkv":
        heads = config["num_attention_heads"]
        # Stored: q or k or v, head, dimension. Hugging Face: head, q or k or v, dimension.
        groups = _row_groups(stored, heads, (3, heads, -1))
        return HfTensor(name=name, stored=stored, row_groups=groups, row_axes=(1, 0, 2))
    return HfTensor(name=name, stored=stored)


def _require_matrix(stored: StoredTensor) -> None:
    if len(stored.shape) != 2:
        raise CorruptCheckpoint(f"{stored.name!r} has the shape {stored.shape}; two axes expected")


def _row_groups(stored: StoredTensor, heads: int, groups: Shape) -> Shape:
    """``groups`` with its -1 replaced by what the rows of ``stored`` give."""
    known = -math.prod(groups)
    rest, remainder = divmod(stored.shape[0], known)
    if remainder:
        raise CorruptCheckpoint(
            f"{stored.name!r} has {stored.shape[0]} rows, not a multiple of {known} ({heads} heads)"
        )
    return tuple(rest if size == -1 else size for size in groups)
