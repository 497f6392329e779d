"""Weights that a config says are quantised: those that a source decodes, and a no to the others."""

from jaxinfer.errors import Unsupported
from jaxinfer.models.hf_config import HfConfig
from jaxinfer.quant.fp8_blocks import BLOCK


def refuse_other_quantizations(fields: HfConfig, decodes: tuple[str, ...]) -> None:
    """Raises where ``quantization_config`` is neither blocks of FP8 nor one of ``decodes``.

    Raises:
        Unsupported: another method.
        ConfigError: a setting of a known one.
    """
    quantization = fields.inner("quantization_config")
    if quantization is None:
        return
    method = quantization.get("quant_method")
    if method == "fp8":
        block = quantization.get("weight_block_size")
        if block != [BLOCK, BLOCK]:
            raise quantization.error("weight_block_size", block, f"[{BLOCK}, {BLOCK}]")
        quantization.only("activation_scheme", "dynamic")
        quantization.only("fmt", "e4m3")
        # How factors are stored their tensors say, and e8m0 are powers of two in any storage.
        quantization.only("scale_fmt", "float", "ue8m0")
    elif method not in decodes:
        stated = fields.get("quantization_config")
        raise Unsupported(f"quantization_config = {stated!r:.200}: not read by this build")
    # Whether a tensor is packed, the checkpoint itself shows.
    quantization.refuse_unread({"modules_to_not_convert", "ignored_layers", "dequantize"})
