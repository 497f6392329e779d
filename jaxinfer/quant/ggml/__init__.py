"""The block formats of ggml: a table of (elements a block, bytes a block, decode function).

A GGUF tensor is a sequence of rows, a row a sequence of blocks, and a block a few scales with the
packed integers they scale. `FORMATS` knows every format that llama.cpp writes for text models, by
its number in the file; `dequantize` turns blocks into float32 exactly as ggml does.

    plain.py     F32 F16 BF16 F64 and the integers: no scale at all
    simple.py    Q1_0 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0: one scale (and one minimum) a block
    k_quants.py  Q2_K .. Q6_K: blocks of 256 whose sub-blocks have quantised scales
    codebook.py  IQ1_S .. IQ4_XS: indices into a table of points (the points: grids.py)
    small.py     TQ1_0 TQ2_0 (three values) and MXFP4 NVFP4 (four-bit floats)
"""

from jaxinfer.quant.ggml import codebook, k_quants, plain, simple, small
from jaxinfer.quant.ggml.block_format import BlockFormat, dequantize

#: Every known format by its number in a GGUF file.
FORMATS: dict[int, BlockFormat] = {
    block_format.number: block_format
    for module in (plain, simple, k_quants, codebook, small)
    for block_format in module.FORMATS
}

__all__ = ["FORMATS", "BlockFormat", "dequantize"]
