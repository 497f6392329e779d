"""A line of a batch file: a request to one of the OpenAI API's addresses."""

import hashlib
import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

URLS = ("/v1/chat/completions", "/v1/completions")

#: What a line is known by: a digest of its custom_id; the number of one that has none.
Key = bytes | int


@dataclass(frozen=True, kw_only=True)
class Line:
    """One request.

    Attributes:
        number: of the line in its file, from 1 on.
        num_bytes: of the line.
        digest: of what it asks, however that is spelled.
    """

    number: int
    custom_id: str
    url: str
    body: Mapping[str, Any]
    num_bytes: int
    digest: int

    @property
    def key(self) -> Key:
        return key_of(self.custom_id, self.number)


@dataclass(frozen=True, kw_only=True)
class BadLine:
    """One that is no request; ``custom_id`` where it could be read all the same.

    Attributes:
        code: for programs.
        message: for people; it names the line.
        digest: of the line; None where nothing of it was read.
    """

    number: int
    custom_id: str | None
    code: str
    message: str
    digest: int | None = None

    @property
    def key(self) -> Key:
        return key_of(self.custom_id, self.number)


def key_of(custom_id: str | None, number: int) -> Key:
    """What a line is known by. Ids may be long, and there may be millions of them."""
    if custom_id is None:
        return number
    return hashlib.blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def read_line(number: int, raw: bytes) -> Line | BadLine:
    """The request that is on a line; whatever else is there is no exception but a ``BadLine``."""
    line = _read(number, raw)
    return replace(line, digest=_digest(raw.strip())) if isinstance(line, BadLine) else line


def _read(number: int, raw: bytes) -> Line | BadLine:
    try:
        entry = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        return _bad(number, None, "invalid_json_line", f"not UTF-8: {error.reason}")
    except (ValueError, RecursionError) as error:
        return _bad(number, None, "invalid_json_line", f"not JSON: {error}")
    if not isinstance(entry, dict):
        return _bad(number, None, "invalid_json_line", 'not an object {"custom_id": ..., ...}')
    custom_id = entry.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        given = _missing_or("custom_id", entry)
        return _bad(number, None, "invalid_custom_id", f"{given}: give a text that is not empty")
    if entry.get("method") != "POST":
        return _bad(
            number, custom_id, "invalid_method", f"{_missing_or('method', entry)}: only POST is"
        )
    if entry.get("url") not in URLS:
        given = _missing_or("url", entry)
        return _bad(number, custom_id, "invalid_url", f"{given}: there are {' and '.join(URLS)}")
    body = entry.get("body")
    if not isinstance(body, dict):
        given = _missing_or("body", entry)
        return _bad(number, custom_id, "invalid_body", f"{given}: give an object, the request")
    if body.get("stream"):
        message = "stream = true is not possible: nobody reads along, leave it out"
        return _bad(number, custom_id, "invalid_body", message)
    return Line(
        number=number,
        custom_id=custom_id,
        url=entry["url"],
        body=body,
        num_bytes=len(raw),
        digest=_digest(_spelled(entry["url"], body) or raw.strip()),
    )


def too_long(number: int, limit: int) -> BadLine:
    """A line of which nothing was read."""
    return _bad(number, None, "line_too_long", f"longer than {limit} bytes: send less at once")


def _spelled(url: str, body: Mapping[str, Any]) -> bytes | None:
    """In one way, whatever the order of keys; None where it nests too deeply for that."""
    try:
        return json.dumps([url, body], sort_keys=True, separators=(",", ":")).encode()
    except RecursionError:
        return None


def _digest(raw: bytes) -> int:
    """Of 64 bits."""
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest())


def _bad(number: int, custom_id: str | None, code: str, message: str) -> BadLine:
    return BadLine(
        number=number, custom_id=custom_id, code=code, message=f"line {number}: {message}"
    )


def _missing_or(name: str, entry: dict[str, Any]) -> str:
    if name not in entry:
        return f"{name} is missing"
    # Of nested lists as deep as the parser's own limit, repr would fail.
    return f"{name} = {reprlib.repr(entry[name])} is not allowed"


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number there")
