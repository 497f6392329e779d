"""A request's body, read with bounds."""

import json
import math
from typing import Any

from starlette.requests import Request

from jaxinfer.errors import InvalidParameter
from serve.errors import TooLarge


class ClientGone(Exception):
    """Nobody waits for an answer any more."""


async def read_json(request: Request, *, max_bytes: int) -> dict[str, Any]:
    """The object that a body holds.

    Raises:
        TooLarge: more bytes than that, whatever the headers say.
        InvalidParameter: no JSON, or no object.
        ClientGone: the client has left before it had sent all.
    """
    length = request.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 18 or int(length) > max_bytes):
        raise _too_large(max_bytes)
    body = bytearray()
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body += message.get("body", b"")
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
        if not message.get("more_body", False):
            return _parse(body)


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


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"the body has more than {max_bytes} bytes: send less")
