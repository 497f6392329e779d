"""Tiny model files, written with the packages that others write theirs with."""

from pathlib import Path

import gguf
import numpy as np
import pytest


def _add(writer: gguf.GGUFWriter, key: str, value: object) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
        return
    kind = gguf.GGUFValueType.get_type(value)
    kind = {gguf.GGUFValueType.INT32: gguf.GGUFValueType.UINT32}.get(kind, kind)
    writer.add_key_value(key, value, kind)


@pytest.fixture
def write_gguf(tmp_path):
    """Writes a GGUF file of float32 tensors, or of blocks where a tensor is ``(bytes, type)``.

    Metadata keys that begin with a dot get the architecture in front of them.
    """

    def write(architecture, metadata, tensors, name="model.gguf") -> Path:
        path = tmp_path / name
        writer = gguf.GGUFWriter(path, architecture)
        for key, value in metadata.items():
            _add(writer, f"{architecture}{key}" if key.startswith(".") else key, value)
        for tensor_name, tensor in tensors.items():
            values, kind = tensor if isinstance(tensor, tuple) else (tensor, None)
            writer.add_tensor(tensor_name, values, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


@pytest.fixture
def random_array():
    """Seeded standard-normal float32 arrays."""
    generator = np.random.default_rng(0)
    return lambda *shape: generator.standard_normal(shape).astype(np.float32)
