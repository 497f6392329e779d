"""When this process began, so that a time to the first token hides nothing."""

import os
import time
from pathlib import Path

_IMPORTED_AT = time.monotonic()
#: The place of a process's start in /proc/PID/stat, counted after the command's name.
_START_FIELD = 19


def process_started_at() -> float:
    """On ``time.monotonic``'s clock; where the system does not tell, when this was imported."""
    try:
        stat = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace")
        ticks = int(stat.rpartition(")")[2].split()[_START_FIELD])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return _IMPORTED_AT
    return time.monotonic() - age
