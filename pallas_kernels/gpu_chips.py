"""What kernels must know of the GPU that they are compiled for: an H100 or H200 (SXM)."""

NUM_SMS = 132
"""Multiprocessors."""

SHARED_BYTES = 227 * 1024
"""Shared memory that one block may have, and nearly all that a multiprocessor has."""
