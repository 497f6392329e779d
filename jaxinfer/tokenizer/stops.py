"""Stop strings, found across the borders of tokens and chunks."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from jaxinfer.errors import InvalidParameter


class StopMatcher:
    """Looks for stop strings in a stream of text and holds back what may become one.

    The match is the stop string that is complete first, and of several complete at the same
    character the longest. So it does not depend on how the text is cut into chunks. The automaton
    is that of Aho and Corasick (1975): one step a character, however many stops there are.
    """

    def __init__(self, stops: Sequence[str], include_in_output: bool = False):
        """
        Args:
            include_in_output: the emitted text ends with the stop string instead of before it.

        Raises:
            InvalidParameter: a stop that is empty or not a str.
        """
        for stop in stops:
            if not isinstance(stop, str) or not stop:
                raise InvalidParameter(f"a stop must be a non-empty str, not {stop!r}")
        self._includes_stop = include_in_output
        self._build(stops)
        self._state = 0
        self._held = ""
        self._matched: str | None = None

    def push(self, text: str) -> tuple[str, str | None]:
        """``(text safe to emit, the stop that matched or None)``; after a match ``("", stop)``."""
        if self._matched is not None:
            return "", self._matched
        text, searched = self._held + text, len(self._held)
        for position in range(searched, len(text)):
            self._state = self._step(self._state, text[position])
            self._matched = self._stop_at[self._state]
            if self._matched is not None:
                self._held = ""
                end = position + 1
                return text[
                    : end if self._includes_stop else end - len(self._matched)
                ], self._matched
        border = len(text) - self._depth[self._state]
        self._held = text[border:]
        return text[:border], None

    def flush(self) -> str:
        """The end of the text: what was held back and became no stop."""
        held, self._held, self._state = self._held, "", 0
        return held

    def _step(self, state: int, character: str) -> int:
        while state and character not in self._children[state]:
            state = self._fallback[state]
        return self._children[state].get(character, 0)

    def _build(self, stops: Sequence[str]) -> None:
        """A state is a prefix of some stop; its fallback is its longest suffix that is also one."""
        self._children: list[dict[str, int]] = [{}]
        self._depth = [0]
        self._stop_at: list[str | None] = [None]
        self._fallback = [0]
        for stop in stops:
            state = 0
            for character in stop:
                if character not in self._children[state]:
                    self._children[state][character] = len(self._children)
                    self._children.append({})
                    self._depth.append(self._depth[state] + 1)
                    self._stop_at.append(None)
                    self._fallback.append(0)
                state = self._children[state][character]
            self._stop_at[state] = stop
        queue = deque(self._children[0].values())
        while queue:  # breadth first, for a fallback is always less deep
            state = queue.popleft()
            for character, child in self._children[state].items():
                self._fallback[child] = self._step(self._fallback[state], character)
                if self._stop_at[child] is None:
                    self._stop_at[child] = self._stop_at[self._fallback[child]]
                queue.append(child)
