"""Compiled programs kept from one process to the next."""

from pathlib import Path

import jax


def default_xla_cache_dir() -> Path:
    """``~/.cache/jaxinfer/xla``."""
    return Path.home() / ".cache" / "jaxinfer" / "xla"


def keep_compiled_programs() -> None:
    """Points jax's compilation cache at our directory, unless somebody chose one already.

    ``JAX_COMPILATION_CACHE_DIR`` names another; ``JAX_ENABLE_COMPILATION_CACHE=0`` turns it off.
    """
    chosen = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if chosen is None:
        jax.config.update("jax_compilation_cache_dir", str(default_xla_cache_dir()))
        # Small programs are many, and jax would leave out what compiles in less than a second.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
