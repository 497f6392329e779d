"""A line of results, in the form of the OpenAI API's batches."""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serve.batch.lines import BadLine, Key, key_of

#: How each of our lines begins.
BEGINNING = b'{"id": "batch_req_'
OK = 200


def answered(custom_id: str, *, status: int, body: Mapping[str, Any], request_id: str) -> bytes:
    """The line of a request with an answer, be it good or an error."""
    response = {"status_code": status, "request_id": request_id, "body": body}
    return _line(custom_id, response=response, error=None)


def refused(line: BadLine) -> bytes:
    """The line of one that is no request: nobody was asked."""
    error = {"code": line.code, "message": line.message, "line": line.number}
    return _line(line.custom_id, response=None, error=error)


@dataclass(frozen=True)
class Result:
    """What a line of results says of a line of requests.

    Attributes:
        name: of that line, for people.
    """

    key: Key
    name: str
    is_ok: bool


def read_result(raw: bytes) -> Result:
    """Reads a line that ``answered`` or ``refused`` wrote.

    Raises:
        ValueError: it is another.
    """
    try:
        entry = json.loads(raw)
        custom_id, response, error = entry["custom_id"], entry["response"], entry["error"]
        number = 0 if custom_id is not None else error["line"]
        is_ok = error is None and response["status_code"] == OK
    except (TypeError, KeyError, RecursionError) as problem:
        raise ValueError("no line of results") from problem
    if not isinstance(number, int) or not isinstance(custom_id, str | None):
        raise ValueError("no line of results")
    name = f"line {number}" if custom_id is None else f"custom_id {custom_id!r:.100}"
    return Result(key_of(custom_id, number), name, is_ok)


def _line(custom_id: str | None, *, response: Any, error: Any) -> bytes:
    entry = {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": custom_id,
        "response": response,
        "error": error,
    }
    text = json.dumps(entry, ensure_ascii=False, allow_nan=False)
    # Half of a surrogate pair has no UTF-8: Python's escape of it is JSON's, too.
    return text.encode("utf-8", "backslashreplace") + b"\n"
