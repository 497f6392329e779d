"""A line of results, in the form of the OpenAI API's batches."""

import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serve.batch.lines import BadLine, Key, key_of

#: How each of our lines begins.
BEGINNING = b'{"id": "batch_req_'
#: Its id ends in the digest of its request; those of earlier versions do not.
_WITH_DIGEST = re.compile("batch_req_[0-9a-f]{32}_([0-9a-f]{16})")
OK = 200


def answered(
    custom_id: str,
    *,
    status: int,
    body: Mapping[str, Any],
    request_id: str,
    digest: int | None = None,
) -> bytes:
    """The line of a request with an answer, be it good or an error. ``digest``: of the request."""
    response = {"status_code": status, "request_id": request_id, "body": body}
    return _line(custom_id, digest, response=response, error=None)


def refused(line: BadLine) -> bytes:
    """The line of one that is no request: nobody was asked."""
    error = {"code": line.code, "message": line.message, "line": line.number}
    return _line(line.custom_id, line.digest, response=None, error=error)


@dataclass(frozen=True)
class Result:
    """What a line of results says of a line of requests.

    Attributes:
        name: of that line, for people.
        digest: of what it asked; None where that is not known.
    """

    key: Key
    name: str
    is_ok: bool
    digest: int | None = None


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
    with_digest = _WITH_DIGEST.fullmatch(str(entry.get("id")))
    digest = None if with_digest is None else int(with_digest[1], 16)
    name = f"line {number}" if custom_id is None else f"custom_id {custom_id!r:.100}"
    return Result(key_of(custom_id, number), name, is_ok, digest)


def _line(custom_id: str | None, digest: int | None, *, response: Any, error: Any) -> bytes:
    end = "" if digest is None else f"_{digest:016x}"
    entry = {
        "id": f"batch_req_{uuid.uuid4().hex}{end}",
        "custom_id": custom_id,
        "response": response,
        "error": error,
    }
    text = json.dumps(entry, ensure_ascii=False, allow_nan=False)
    # Half of a surrogate pair has no UTF-8: Python's escape of it is JSON's, too.
    return text.encode("utf-8", "backslashreplace") + b"\n"
