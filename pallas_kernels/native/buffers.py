"""The arrays of a call as a kernel reads them."""

from llvmlite import ir

from pallas_kernels.native import ffi
from pallas_kernels.native.code import I64, POINTER, Code, integer


class Buffer:
    """One of the arguments or results that XLA hands over."""

    def __init__(self, code: Code, values: ir.Value, place: int):
        self._code = code
        self._struct = code.load(POINTER, code.at(POINTER, values, integer(place)))

    def size(self, axis: int) -> ir.Value:
        """The length of an axis."""
        dims = self._code.read(ffi.BUFFER, self._struct, "dims")
        return self._code.load(I64, self._code.at(I64, dims, integer(axis)))

    @property
    def data(self) -> ir.Value:
        """The address of its first element; the last axis lies densest."""
        return self._code.read(ffi.BUFFER, self._struct, "data")
