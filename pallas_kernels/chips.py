"""Chips that are not here, as their compilers know them: to compile for, not to run on."""

import importlib.util
import os
from typing import Any

from jax.experimental import topologies

TPUS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
"""Topologies of four TPUs (eight devices of v5p and tpu7x at most), by the name of the chip."""

GPUS = {
    "h100": ("NVIDIA H100 80GB HBM3", 3_350_000_000_000, 80_000_000_000),
    "h200": ("NVIDIA H200", 4_800_000_000_000, 141_000_000_000),
}
"""Name of the device, bytes a second and bytes of its memory."""

NAMES = (*TPUS, *GPUS)

_HOPPER = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: {memory} shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: 9 minor: 0 }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
device_description_str: "{name}"
"""


class NoCompiler(RuntimeError):
    """The compiler for a chip is not installed, or serves another process."""


def devices_of(chip: str) -> list[Any]:
    """Devices to build a mesh of: four or more of a TPU, one GPU.

    Needs ``libtpu`` (the extra ``tpu``), or JAX's CUDA plug-in with ``nvidia-cuda-nvcc`` and its
    kin; neither needs a device or a driver.

    Raises:
        ValueError: a chip not in ``NAMES``.
        NoCompiler: with what is missing.
    """
    if chip in TPUS:
        return _tpus(chip)
    if chip in GPUS:
        return _gpus(chip)
    raise ValueError(f"chip = {chip!r} is not one of {', '.join(NAMES)}")


def _tpus(chip: str) -> list[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise NoCompiler(f"to compile for {chip} install libtpu: pip install 'jaxinfer[tpu]'")
    # The compiler looks for a machine to run on unless it is told that there is none.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    try:
        return list(topologies.get_topology_desc(TPUS[chip], "tpu").devices)
    except RuntimeError as error:  # Another process has the compiler; it serves one at a time.
        raise NoCompiler(f"the TPU compiler did not start: {error}") from error


def _gpus(chip: str) -> list[Any]:
    name, bandwidth, memory = GPUS[chip]
    target = _HOPPER.format(name=name, bandwidth=bandwidth, memory=memory)
    try:
        topology = topologies.get_topology_desc(
            chip, "cuda", topology="1x1x1", target_config=target
        )
    except Exception as error:  # The plug-in says in many ways that it is not there.
        raise NoCompiler(
            f"to compile for {chip} install jax-cuda13-plugin, jax-cuda13-pjrt, nvidia-cuda-nvcc,"
            f" nvidia-nvvm, nvidia-cuda-crt and nvidia-cuda-runtime: {error}"
        ) from error
    return list(topology.devices)
