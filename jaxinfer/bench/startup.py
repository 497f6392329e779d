"""From the start of a process to its first token, with and without compiled programs at hand."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from jaxinfer.errors import JaxInferError


def measure_startup(model_arguments: Sequence[str]) -> dict[str, Any]:
    """Runs ``jaxinfer generate`` for one token, twice, in processes of their own.

    The first finds an empty compilation cache (``cold``), the second what the first left there
    (``warm``). Files of the model may be in the system's memory both times. Seconds by phase:
    ``imports``, ``open``, ``load`` and side by side with it ``compile``, ``warm`` (every program
    has run once), then ``first_token`` since submission, and ``total`` since the process began.

    Args:
        model_arguments: of the command, such as ``["--model", "smollm2-135m"]``.

    Raises:
        JaxInferError: a process failed; with the last line that it wrote.
    """
    with tempfile.TemporaryDirectory(prefix="jaxinfer-xla-") as cache:
        return {name: _start(model_arguments, cache) for name in ("cold", "warm")}


def _start(model_arguments: Sequence[str], cache: str) -> dict[str, float]:
    command = [sys.executable, "-m", "jaxinfer.cli", "generate", "Hello", "--max-tokens", "1"]
    run = subprocess.run(
        [*command, "--json", *model_arguments],
        env=os.environ
        | {"JAX_COMPILATION_CACHE_DIR": cache}
        | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if run.returncode != 0:
        lines = run.stderr.strip().splitlines() or [f"exit status {run.returncode}"]
        raise JaxInferError(f"the process that was to be timed failed: {lines[-1]}")
    timing = json.loads(run.stdout)["timing"]
    return timing["startup"] | {
        "first_token": timing["first_token_after_submission"],
        "total": timing["first_token_after_start"],
    }
