"""What ``/openapi.json`` says about bodies and answers."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

_REF = "#/components/schemas/"


def _object(**properties: Any) -> dict[str, Any]:
    """All of them are there, and there may be more."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _nullable(kind: Any) -> dict[str, Any]:
    return {"anyOf": [kind, {"type": "null"}]}


_TEXT, _COUNT = {"type": "string"}, {"type": "integer", "minimum": 0}
_NAME = _nullable(_TEXT)
#: One of a stream's: before OpenAPI 3.2, no schema was of all of them.
_EVENT = _object(data=_TEXT)
_FINISH = {"enum": ["stop", "length"]}
_ERROR = _object(error=_object(message=_TEXT, type=_TEXT, param=_NAME, code=_NAME))
_USAGE = _object(
    prompt_tokens=_COUNT,
    completion_tokens=_COUNT,
    total_tokens=_COUNT,
    prompt_tokens_details=_object(cached_tokens=_COUNT),
)
_VALUES = _nullable({"type": "number"})
_TEXT_LOGPROBS = _object(
    tokens=_list(_TEXT),
    token_logprobs=_list(_VALUES),
    top_logprobs=_list(_nullable({"type": "object"})),
    text_offset=_list(_COUNT),
)
_CHAT_LOGPROBS = _object(
    content=_list(
        _object(
            token=_TEXT,
            logprob={"type": "number"},
            bytes=_list(_COUNT),
            top_logprobs=_list({"type": "object"}),
        )
    )
)


def _answer(object_name: str, **choice: Any) -> dict[str, Any]:
    return _object(
        id=_TEXT,
        object={"const": object_name},
        created=_COUNT,
        model=_TEXT,
        system_fingerprint={"type": "null"},
        choices=_list(_object(index=_COUNT, finish_reason=_FINISH, **choice)),
        usage=_USAGE,
    )


_MODEL = _object(id=_TEXT, object={"const": "model"}, created=_COUNT, owned_by=_TEXT)

#: What a request that succeeds is answered, by path.
ANSWERS: Mapping[str, dict[str, Any]] = {
    "/v1/completions": _answer("text_completion", text=_TEXT, logprobs=_nullable(_TEXT_LOGPROBS)),
    "/v1/chat/completions": _answer(
        "chat.completion",
        message=_object(role={"const": "assistant"}, content=_TEXT),
        logprobs=_nullable(_CHAT_LOGPROBS),
    ),
    "/tokenize": _object(
        count=_COUNT,
        max_model_len=_COUNT,
        tokens=_list(_COUNT),
        token_strs=_nullable(_list(_TEXT)),
    ),
    "/detokenize": _object(prompt=_TEXT),
    "/v1/models": _object(object={"const": "list"}, data=_list(_MODEL)),
    "/v1/models/{model_id}": _MODEL,
    "/tokenizer_info": _object(
        tokenizer_class=_TEXT, bos_token=_NAME, eos_token=_NAME, chat_template=_NAME
    ),
    "/version": _object(version=_TEXT),
    "/health": _object(status=_TEXT),
}


def responses(path: str) -> dict[int | str, dict[str, Any]]:
    """The answers of a path, for ``FastAPI.add_api_route``."""
    content: dict[str, Any] = {"application/json": {"schema": ANSWERS[path]}}
    if path.startswith("/v1/") and path.endswith("completions"):
        content["text/event-stream"] = {"schema": _EVENT}
    error = {"application/json": {"schema": {"$ref": f"{_REF}Error"}}}
    return {
        200: {"description": "The answer.", "content": content},
        "4XX": {"description": "The request is refused.", "content": error},
        "5XX": {"description": "The server has failed, or is about to end.", "content": error},
    }


def request_body(body: type[BaseModel]) -> dict[str, Any]:
    """The same for its body, as ``openapi_extra``."""
    schema = {"$ref": f"{_REF}{body.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def add_schemas(app: FastAPI, bodies: list[type[BaseModel]]) -> None:
    """Puts what the others refer to into the application's ``/openapi.json``."""
    plain = app.openapi

    def with_schemas() -> dict[str, Any]:
        document = plain()
        _, schemas = models_json_schema(
            [(body, "validation") for body in bodies], ref_template=_REF + "{model}"
        )
        components = document.setdefault("components", {}).setdefault("schemas", {})
        components.update(schemas["$defs"], Error=_ERROR)
        return document

    app.openapi = with_schemas  # type: ignore[method-assign]
