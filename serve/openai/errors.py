"""Exceptions as the OpenAI API tells them."""

import math
import re
from typing import Any

from jaxinfer.errors import CapacityError, PromptTooLong
from serve.errors import NotFound
from serve.openai.bodies import ChatBody, CompletionBody
from serve.openai.validation import IGNORED, REFUSED
from serve.statuses import message_of, status_of

_FIELDS = IGNORED | set(REFUSED) | set(CompletionBody.model_fields) | set(ChatBody.model_fields)

#: What clients compare.
_CODES: tuple[tuple[type[Exception], str], ...] = (
    (PromptTooLong, "context_length_exceeded"),
    (NotFound, "model_not_found"),
    (CapacityError, "rate_limit_exceeded"),
)


def error_body(error: Exception) -> tuple[int, dict[str, Any], dict[str, str]]:
    """The HTTP status, the body and the headers of a refusal."""
    status, message = status_of(error), message_of(error)
    code = next((code for kind, code in _CODES if isinstance(error, kind)), None)
    headers = {}
    if status.pushback_ms is not None:
        headers["Retry-After"] = str(math.ceil(status.pushback_ms / 1000))
    body = {
        "error": {
            "message": message,
            "type": status.kind,
            "param": _param_of(message),
            "code": code,
        }
    }
    return status.http, body, headers


def _param_of(message: str) -> str | None:
    """Messages begin with the name of what they are about, where that has one."""
    match = re.match("[a-z_]+", message)
    return match[0] if match and match[0] in _FIELDS else None
