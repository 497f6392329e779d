"""Bars for the phases of a start, where a person is looking."""

import sys
import threading
from types import TracebackType
from typing import Self

from tqdm import tqdm


class PhaseBars:
    """A callable for ``LLM(progress=...)``: a bar for each phase while it lasts."""

    def __init__(self) -> None:
        self._is_shown = sys.stderr.isatty()
        self._bars: dict[str, tqdm] = {}
        self._lock = threading.Lock()

    def __call__(self, phase: str, done: int, total: int) -> None:
        if not self._is_shown:
            return
        with self._lock:
            bar = self._bars.get(phase)
            if bar is None:
                bar = tqdm(desc=phase, total=total, leave=False, file=sys.stderr)
                self._bars[phase] = bar
            bar.update(done - bar.n)
            if done == total:
                self._bars.pop(phase).close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for bar in self._bars.values():
            bar.close()
