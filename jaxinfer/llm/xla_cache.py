"""Compiled programs kept from one process to the next."""

from pathlib import Path

import jax

from jaxinfer.checkpoint.cache_directory import cache_directory


def default_xla_cache_dir() -> Path | None:
    """``xla`` in the cache directory; None where there is no home to have one."""
    try:
        return cache_directory() / "xla"
    except RuntimeError:
        return None


def keep_compiled_programs() -> None:
    """Points jax's compilation cache at our directory, unless somebody chose one already.

    ``JAX_COMPILATION_CACHE_DIR`` names another; ``JAX_ENABLE_COMPILATION_CACHE=0`` turns it off.
    """
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        directory = default_xla_cache_dir()
        if directory is None:
            return
        jax.config.update("jax_compilation_cache_dir", str(directory))
    # Small programs are many, and jax would leave out what compiles in less than a second.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
