"""A guide tried out where it can do no harm: a process of its own, with little time, memory and
stack.

The library counts most of the work that a grammar makes, but not all of it: to see whether some
intersections of regular expressions match anything takes it minutes, and gigabytes. And where a
guide nests too deeply for its stack, there is no error: the process ends. What it counts it finds
out while a text is made; so the beginnings of some texts are made here.
"""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llguidance import LLMatcher

MEMORY_BYTES = 2**30
#: Of the thread that it is tried in: half of what any system gives to the threads that compile it.
STACK_BYTES = 2**20
#: Bytes of the text that is made, of others that are tried at each of them, and of all those.
_NUM_BYTES, _NUM_BESIDE, _NUM_TRIED = 128, 32, 256
#: Exit status where the library says what is wrong.
_SAID = 3
#: Its word for a text that nothing can go on with, which may be right.
_DEAD_END = "NoExtensionBias"
#: What a text of JSON soonest has new parts by, and what brings nothing new.
_FIRST, _LAST = b'",{[', b" \t\n\r"


def why_unfit(lark: str, seconds: float) -> str | None:
    """What is wrong with a grammar that takes more than this time, ``MEMORY_BYTES`` or
    ``STACK_BYTES``, or of which a text is soon too complex for the library, in its words; None: it
    does not, whether or not it is a right one.
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
    if trial.returncode == _SAID:
        return trial.stdout.decode(errors="replace")
    return f"it takes more than {seconds:g} s or {MEMORY_BYTES >> 20} MiB, or nests too deeply"


def _try(lark: str) -> str | None:
    """In the process of its own: what the library says of the beginning of some text."""
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

    limits = LLParserLimits(verbose_errors=False)
    matcher = LLMatcher(LLTokenizer("byte"), lark, log_level=0, limits=limits)
    if matcher.is_error():
        return None
    num_tried = 0
    for _ in range(_NUM_BYTES):
        allowed = _allowed(matcher)
        for byte in allowed[:_NUM_BESIDE]:
            beside = matcher.deep_copy()
            beside.consume_token(byte)
            _allowed(beside)
            if beside.is_error() and not beside.get_error().startswith(_DEAD_END):
                return beside.get_error()
            num_tried += 1
        if not allowed or num_tried >= _NUM_TRIED:
            break
        matcher.consume_token(allowed[0])
    return None


def _allowed(matcher: "LLMatcher") -> list[int]:
    """The bytes that may follow, those first by which a text soon has many parts."""
    if matcher.is_error() or matcher.is_stopped():
        return []
    mask = matcher.compute_bitmask()
    allowed = [byte for byte in range(256) if mask[byte >> 3] >> (byte & 7) & 1]
    return sorted(allowed, key=lambda byte: (byte in _LAST, byte not in _FIRST, byte))


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
        error = small.submit(_try, sys.stdin.buffer.read().decode()).result()
    if error is not None:
        print(error)
        sys.exit(_SAID)
