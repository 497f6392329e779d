"""Writes the Python modules of the protocol files beside this one.

    pip install grpcio-tools==1.72.2
    python -m serve.proto.make

That version's modules load with protobuf from 6.30 on, the next major version included; those of
newer ones demand newer libraries than other packages allow.
"""

import subprocess
import sys
from pathlib import Path

ROOM = Path(__file__).parent
FILES = ("admin.proto", "inference.proto")


def main() -> None:
    """Runs the compiler from the root of the repository, so that modules import each other."""
    root = ROOM.parent.parent
    outputs = [f"--{kind}_out=." for kind in ("python", "pyi", "grpc_python")]
    files = [str((ROOM / name).relative_to(root)) for name in FILES]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", *outputs, *files]
    subprocess.run(command, cwd=root, check=True)


if __name__ == "__main__":
    main()
