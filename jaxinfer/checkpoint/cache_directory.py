"""Where what was fetched and compiled is kept from one process to the next."""

import os
from pathlib import Path


def cache_directory() -> Path:
    """``$JAXINFER_CACHE``, else ``$XDG_CACHE_HOME/jaxinfer``, else ``~/.cache/jaxinfer``.

    A relative ``XDG_CACHE_HOME`` counts as none, as its specification says.

    Raises:
        RuntimeError: there is none of these, for want of a home directory.
    """
    if configured := os.environ.get("JAXINFER_CACHE"):
        return Path(configured)
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "jaxinfer"
