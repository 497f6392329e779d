"""A listening socket that has so many connections at a time."""

import socket
from typing import Any
from weakref import WeakSet


class BoundedListener(socket.socket):
    """Closes what is accepted beyond a bound at once, before a byte of it is read.

    It counts sockets, so a client that begins no TLS counts as well. An event loop that finds no
    file descriptor for one would complain, and try again, as fast as it can.
    """

    def __init__(self, listener: socket.socket, *, most: int):
        """Takes the place of ``listener``. ``most``: connections that are open."""
        super().__init__(fileno=listener.detach())
        self._most = most
        self._connections: WeakSet[_Connection] = WeakSet()

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection.

        Raises:
            BlockingIOError: there is none, or one too many: others have their turn meanwhile.
        """
        accepted, address = super().accept()
        if len(self._connections) >= self._most:
            accepted.close()
            raise BlockingIOError("too many connections")
        return _Connection(accepted, self._connections), address


class _Connection(socket.socket):
    def __init__(self, accepted: socket.socket, connections: "WeakSet[_Connection]"):
        super().__init__(fileno=accepted.detach())
        self._connections = connections
        connections.add(self)

    def close(self) -> None:
        self._connections.discard(self)
        super().close()
