"""A request's body, read with bounds."""

import json
import math
from typing import Any

from starlette.requests import Request

from jaxinfer.errors import CapacityError, InvalidParameter
from serve.errors import TooLarge

#: Bodies of the largest size that may be on their way at once.
_MAX_LARGE_BODIES = 8
#: Values of one body, as many as the token ids of 256 prompts of 8,191. Each takes much more memory
#: than it has bytes, and nobody else is answered while they are made.
MAX_VALUES = 2**21
#: Names of fields in one body, which take more still: as many as 256 logit biases of 1,024 tokens.
MAX_NAMES = 2**18


class ClientGone(Exception):
    """Nobody waits for an answer any more."""


class BodyReader:
    """Reads bodies, none of them above a size, nor all that are on their way above another."""

    def __init__(self, *, max_bytes: int):
        """``max_bytes``: of one body."""
        self._max_bytes = max_bytes
        self._room = _MAX_LARGE_BODIES * max_bytes

    async def read_json(self, request: Request) -> dict[str, Any]:
        """The object that a body holds.

        Raises:
            TooLarge: more bytes than allowed, whatever the headers say.
            CapacityError: too many large ones at once.
            InvalidParameter: no JSON, or no object.
            ClientGone: the client has left before it had sent all.
        """
        length = request.headers.get("content-length", "")
        if length.isdecimal() and (len(length) > 18 or int(length) > self._max_bytes):
            raise self._too_large()
        body = bytearray()
        try:
            while await self._read_more(request, body):
                pass
            return _parse(body)
        finally:
            self._room += len(body)

    async def _read_more(self, request: Request, body: bytearray) -> bool:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        body += part
        self._room -= len(part)
        if len(body) > self._max_bytes:
            raise self._too_large()
        if self._room < 0:
            raise CapacityError("too many large bodies are on their way: try again later")
        return message.get("more_body", False)

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body has more than {self._max_bytes} bytes: send less")


def read_timeout(request: Request) -> float | None:
    """Seconds that a client gives, in the header ``X-Request-Timeout``.

    Raises:
        InvalidParameter: no finite number.
    """
    given = request.headers.get("x-request-timeout")
    if given is None:
        return None
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise InvalidParameter(
            f"the header X-Request-Timeout = {given!r:.100} is not allowed: it must be a number "
            "of seconds"
        )
    return seconds


def _parse(body: bytearray) -> dict[str, Any]:
    # Those in texts count, too: a text of so many says more than any context holds.
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise InvalidParameter(
            f"the body has more than {MAX_VALUES} commas and brackets: send fewer values at once"
        )
    if body.count(b":") > MAX_NAMES:
        raise InvalidParameter(
            f"the body has more than {MAX_NAMES} colons: send fewer fields at once"
        )
    try:
        value = json.loads(body.decode(), parse_constant=_refuse_constant)
    except RecursionError:
        raise InvalidParameter("the body is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise InvalidParameter(f"the body is not UTF-8: {error}") from error
    except InvalidParameter:
        raise
    except ValueError as error:  # also of integers that are too long
        raise InvalidParameter(f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidParameter(f"the body must be a JSON object, not a {type(value).__name__}")
    return value


def _refuse_constant(name: str) -> None:
    raise InvalidParameter(f"the body holds {name}, which is not JSON: give a finite number")
