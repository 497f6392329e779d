"""Bars for the phases of a start, where a person is looking."""

import sys
from types import TracebackType
from typing import Self

from tqdm import tqdm


class PhaseBars:
    """A callable for ``LLM(progress=...)``: one bar a phase, gone when the next begins."""

    def __init__(self) -> None:
        self._is_shown = sys.stderr.isatty()
        self._bar: tqdm | None = None

    def __call__(self, phase: str, done: int, total: int) -> None:
        if not self._is_shown:
            return
        if self._bar is None or self._bar.desc != f"{phase}: ":
            self._close()
            self._bar = tqdm(desc=phase, total=total, leave=False, file=sys.stderr)
        self._bar.update(done - self._bar.n)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
