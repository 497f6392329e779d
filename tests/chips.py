"""Chips that are not here, to compile for."""

import importlib.util
import os
from collections.abc import Callable, Iterator

import jax
import numpy as np
import pytest
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

TPUS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3350000000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 80000000000 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@pytest.fixture
def no_program_cache() -> Iterator[None]:
    """Programs are compiled, not read: those for other chips cannot be loaded without a device, and
    would come without the assembler's report."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # which remembers whether it is in use
    yield
    jax.config.update("jax_enable_compilation_cache", before)
    compilation_cache.reset_cache()


@pytest.fixture
def tpu_mesh(no_program_cache: None) -> Callable[..., Mesh]:
    """``tpu_mesh(chip, devices=1, axes=("chip",))``: TPUs along the last of the axes."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu, the TPU compiler, is not installed")
    # The compiler looks for a machine to run on unless it is told that there is none.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")

    def make(chip: str, devices: int = 1, axes: tuple[str, ...] = ("chip",)) -> Mesh:
        try:
            topology = topologies.get_topology_desc(TPUS[chip], "tpu")
        except RuntimeError as error:  # Another process has the compiler; it serves one at a time.
            pytest.skip(f"the TPU compiler did not start: {error}")
        shape = (1,) * (len(axes) - 1) + (devices,)
        return Mesh(np.array(topology.devices[:devices]).reshape(shape), axes)

    return make


@pytest.fixture
def hopper_mesh(no_program_cache: None) -> Mesh:
    """A mesh of one Hopper GPU."""
    from pallas_kernels import compat  # after the hook that checks shapes

    try:
        topology = compat.gpu_topology(H100)
    except Exception as missing:  # The plug-in says in many ways that it is not there.
        pytest.skip(f"no compiler for CUDA: {missing}")
    return Mesh(np.array(topology.devices), ("chip",))
