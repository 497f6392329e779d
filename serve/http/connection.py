"""One connection, with a patience for clients that do not go on."""

import asyncio
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from serve.http.heads import BoundedHeads

#: Seconds that one who is refused has to read that. Were its connection closed while it still
#: sends, its system would drop what it has not read.
_LINGER = 5.0


def bounded_connection(patience: float, max_head_bytes: int) -> type[H11Protocol]:
    """Connections that end when a client takes longer than ``patience`` seconds to send a request,
    or to take what waits for it, or sends a request whose line and headers are too long.

    Each byte that comes does not begin the time anew: drop by drop is no way to hold a connection.
    """

    class BoundedConnection(H11Protocol):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.conn: BoundedHeads = BoundedHeads(max_head_bytes)
            self._owed = _Timer(patience, self._give_up)
            self._unread = _Timer(patience, self._give_up)
            self._lingers = _Timer(min(patience, _LINGER), self._give_up)

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            # Whatever the client has not taken counts. With 0, TLS would wait for less than none.
            transport.set_write_buffer_limits(high=1, low=0)
            self._owed.start()

        def data_received(self, data: bytes) -> None:
            if self.conn.refused is not None:
                return  # it was told so
            self._owed.start()
            super().data_received(data)
            if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
                self._owed.stop()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            # The next request may have come with the last one, but not the whole of it.
            if self.conn.their_state is h11.SEND_BODY:
                self._owed.start()

        def send_400_response(self, msg: str) -> None:
            answer = self.conn.refusal()
            if not answer:
                self.transport.close()
                return
            if self.cycle is not None:  # it has its answer
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            self.transport.write(answer)
            if self.transport.can_write_eof():
                self.transport.write_eof()
            self._lingers.start()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._unread.start()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._unread.stop()

        def connection_lost(self, exc: Exception | None) -> None:
            self._owed.stop()
            self._unread.stop()
            self._lingers.stop()
            super().connection_lost(exc)

        def _give_up(self) -> None:
            self.transport.abort()

    return BoundedConnection


class _Timer:
    """Runs once at a time."""

    def __init__(self, seconds: float, then: Callable[[], None]):
        self._seconds, self._then = seconds, then
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Does nothing while it runs."""
        if self._handle is None:
            loop = asyncio.get_running_loop()
            self._handle = loop.call_later(self._seconds, self._then)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
