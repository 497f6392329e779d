"""Makes the ``LLM`` of a command."""

import time
from typing import TYPE_CHECKING, Any

from jaxinfer.cli.process_clock import process_started_at
from jaxinfer.cli.thread_policy import stop_preempting

if TYPE_CHECKING:
    from jaxinfer.llm import LLM


def load_llm(**settings: Any) -> "LLM":
    """``LLM(**settings)`` with bars; what passed before it counts as the phase ``imports``.

    The process is the command's own: on a CPU its threads leave each other to compute.
    """
    from jaxinfer.cli.progress import PhaseBars
    from jaxinfer.llm import LLM

    imports = time.monotonic() - process_started_at()
    with PhaseBars() as bars:
        llm = LLM(**settings, progress=bars)
    if llm.platform == "cpu":
        stop_preempting()
    llm.startup_seconds = {"imports": imports, **llm.startup_seconds}
    return llm
