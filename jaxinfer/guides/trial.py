"""A guide tried out where it can do no harm: a process of its own, with little time, memory and
stack.

The library counts most of the work that a grammar makes, but not all of it: to see whether some
intersections of regular expressions match anything takes it minutes, and gigabytes. And where a
guide nests too deeply for its stack, there is no error: the process ends.
"""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MEMORY_BYTES = 2**30
#: Of the thread that it is tried in: half of what any system gives to the threads that compile it.
STACK_BYTES = 2**20


def why_unfit(lark: str, seconds: float) -> str | None:
    """What is wrong with a grammar that takes more than this time, ``MEMORY_BYTES`` or
    ``STACK_BYTES``; None: it does not, whether or not it is a right one.
    """
    command = [sys.executable, "-P", str(Path(__file__)), str(seconds)]
    try:
        trial = subprocess.run(
            command, input=lark.encode(), timeout=seconds, capture_output=True, check=False
        )
    except subprocess.TimeoutExpired:
        return f"it takes more than {seconds:g} s"
    if trial.returncode == 0:
        return None
    return f"it takes more than {seconds:g} s or {MEMORY_BYTES >> 20} MiB, or nests too deeply"


def _try(lark: str) -> None:
    """In the process of its own."""
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

    limits = LLParserLimits(verbose_errors=False)
    matcher = LLMatcher(LLTokenizer("byte"), lark, log_level=0, limits=limits)
    if not matcher.is_error():
        matcher.compute_bitmask()


def _limit(seconds: float) -> None:
    try:
        import resource
    except ImportError:  # where there are no such limits, time is the only one
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    _limit(float(sys.argv[1]))
    threading.stack_size(STACK_BYTES)
    with ThreadPoolExecutor(1) as small:
        small.submit(_try, sys.stdin.buffer.read().decode()).result()
