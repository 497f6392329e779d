"""The head of a request, which is its line and its headers, of so many bytes."""

import json
import re
import uuid

import h11

#: The empty line behind a head.
_END = re.compile(rb"\n\r?\n")
#: Characters of what is said about bytes that are no request.
_MAX_REASON = 200
TOO_LARGE = 431
_PHRASES = {400: b"Bad Request", TOO_LARGE: b"Request Header Fields Too Large"}


class BoundedHeads(h11.Connection):
    """A server's side of a connection that reads no head of more than ``most`` bytes.

    h11 itself looks at what is incomplete: a head that comes whole may be as long as what is read
    at once.

    Attributes:
        refused: why the bytes that came are no request; None where they are one.
    """

    def __init__(self, most: int):
        super().__init__(h11.SERVER, max_incomplete_event_size=most)
        self._most = most
        self._what = ""
        self.refused: h11.RemoteProtocolError | None = None

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """As h11's.

        Raises:
            h11.RemoteProtocolError: no request, or one with too long a head.
        """
        is_head = self.their_state is h11.IDLE
        self._what = "the line and the headers of the request" if is_head else "a line of the body"
        try:
            if is_head:
                self._require_short()
            return super().next_event()
        except h11.RemoteProtocolError as error:
            self.refused = error
            raise

    def _require_short(self) -> None:
        came, _ = self.trailing_data
        if len(came) > self._most and not _END.search(came, 0, self._most):
            raise h11.RemoteProtocolError("too long a head", error_status_hint=TOO_LARGE)

    def refusal(self) -> bytes:
        """The answer to what is no request, and the last one; empty where another has begun."""
        if self.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return b""
        if self.refused is not None and self.refused.error_status_hint == TOO_LARGE:
            status = TOO_LARGE
            words = (
                f"{self._what}: more than {self._most} bytes (--max-metadata-bytes) are not"
                " allowed, send fewer"
            )
        else:
            status = 400
            words = f"the bytes are no HTTP request: {str(self.refused)[:_MAX_REASON]}"
        error = {"message": words, "type": "invalid_request_error", "param": None, "code": None}
        body = json.dumps({"error": error}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            (b"x-request-id", uuid.uuid4().hex.encode()),
        ]
        response = h11.Response(status_code=status, headers=headers, reason=_PHRASES[status])
        events = (response, h11.Data(data=body), h11.EndOfMessage())
        return b"".join(self.send(event) or b"" for event in events)
