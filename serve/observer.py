"""Who looks on while requests are answered: metrics, traces."""

from typing import TYPE_CHECKING, Protocol

from jaxinfer.engine.request import Request
from jaxinfer.outputs import TokenEvent

if TYPE_CHECKING:
    from serve.frontend import Ask


class Watch(Protocol):
    """Looks at the events of one request, in the event loop: microseconds a token, no more."""

    def note(self, event: TokenEvent, now: float) -> None:
        """``now``: seconds of ``time.monotonic``, the same for all events of a step."""
        ...


class Observer(Protocol):
    """Looks at every request that was taken in."""

    def begin(self, ask: "Ask", request: Request, arrival: float) -> Watch:
        """``arrival``: when it came over the wire, of the same clock.

        The engine may yet refuse it, for nothing of it was looked at; then the watch is never told
        of anything.
        """
        ...
