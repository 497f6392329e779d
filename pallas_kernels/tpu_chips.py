"""What kernels must know of the TPU that they are compiled for."""

from dataclasses import dataclass

from pallas_kernels.dispatch import Chip


@dataclass(frozen=True, kw_only=True)
class TpuChip:
    """One core of a chip, as ``pltpu.get_tpu_info`` of jax 0.10.2 has it (published figures).

    ``vmem_bytes``: its vector memory. ``flops_per_second``: of bfloat16 products.
    ``cores``: those that one device has, between which a kernel may divide a parallel grid.
    """

    vmem_bytes: int
    bytes_per_second: float
    flops_per_second: float
    cores: int = 1

    @property
    def flops_per_byte(self) -> float:
        """How much must be computed with a byte before computing takes longer than reading it."""
        return self.flops_per_second / self.bytes_per_second


MIB = 2**20
TPU_CHIPS = {
    # v5e
    "TPU v5 lite": TpuChip(vmem_bytes=128 * MIB, bytes_per_second=0.82e12, flops_per_second=197e12),
    # v5p: two cores that are one device
    "TPU v5": TpuChip(
        vmem_bytes=64 * MIB, bytes_per_second=1.23e12, flops_per_second=229.5e12, cores=2
    ),
    # v6e
    "TPU v6 lite": TpuChip(vmem_bytes=128 * MIB, bytes_per_second=1.64e12, flops_per_second=920e12),
    # two cores that are two devices
    "TPU7x": TpuChip(vmem_bytes=64 * MIB, bytes_per_second=3.7e12, flops_per_second=1155e12),
}
"""By the kind of a device, as JAX calls it."""

UNKNOWN = TpuChip(vmem_bytes=64 * MIB, bytes_per_second=1.23e12, flops_per_second=229.5e12)
"""For a TPU that is not in the table, and for the interpreter: what fits into all of those."""


def tpu_chip(chip: Chip) -> TpuChip:
    """The figures of ``dispatch.chip()``."""
    return TPU_CHIPS.get(chip.kind, UNKNOWN)
