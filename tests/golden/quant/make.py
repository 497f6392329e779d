"""Asks Hugging Face's transformers what packed MXFP4 tensors stand for.

Run from the repository's root, with the extra ``golden`` installed:

    python -m tests.golden.quant.make

Writes ``mxfp4.npz``: uint8 ``blocks`` ``[E, out, groups, 16]`` and ``scales`` ``[E, out, groups]``,
and the bits of the bfloat16 ``decoded`` ``[E, in, out]``.
"""

from pathlib import Path

import numpy as np
import torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors


def main() -> None:
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (2, 12, 3, 16), dtype=np.uint8)
    # All bytes, and all exponents at which no product leaves bfloat16.
    blocks.reshape(-1)[:256] = np.arange(256)
    scales = rng.integers(1, 252, (2, 12, 3), dtype=np.uint8)
    decoded = convert_moe_packed_tensors(torch.tensor(blocks), torch.tensor(scales))
    bits = decoded.view(torch.uint16).numpy()
    path = Path(__file__).parent / "mxfp4.npz"
    np.savez_compressed(path, blocks=blocks, scales=scales, decoded=bits)
    print(path, bits.shape)


if __name__ == "__main__":
    main()
