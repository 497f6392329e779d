"""The application: which path is answered by what."""

from collections.abc import Callable

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

import jaxinfer
from serve.frontend import Frontend
from serve.http.bodies import BodyReader
from serve.http.facts import Facts, Render
from serve.http.generation import generation
from serve.http.guard import Guard
from serve.http.responses import document
from serve.http.schema import add_schemas, request_body, responses
from serve.http.tokenization import DetokenizeBody, Tokenization, TokenizeBody
from serve.openai import ENDPOINTS
from serve.openai.bodies import ChatBody, CompletionBody
from serve.settings import ServeSettings

_BODIES: dict[str, type[BaseModel]] = {
    "/v1/completions": CompletionBody,
    "/v1/chat/completions": ChatBody,
    "/tokenize": TokenizeBody,
    "/detokenize": DetokenizeBody,
}


def application(
    frontend: Frontend,
    settings: ServeSettings,
    *,
    is_well: Callable[[], bool] = lambda: True,
    metrics: Render | None = None,
) -> ASGIApp:
    """The OpenAI API over a frontend, behind its guard.

    Args:
        is_well: whether the model answers.
        metrics: what ``/metrics`` says; None: there is no such path.
    """
    return Guard(routes(frontend, settings, is_well, metrics), settings.tokens)


def routes(
    frontend: Frontend,
    settings: ServeSettings,
    is_well: Callable[[], bool],
    metrics: Render | None,
) -> FastAPI:
    """The same, in front of it."""
    app = FastAPI(
        title="jaxinfer",
        version=jaxinfer.__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_exception_handler(HTTPException, _no_such_path)
    bodies = BodyReader(max_bytes=settings.max_message_bytes)
    posts = dict.fromkeys(ENDPOINTS, generation(frontend, bodies))
    posts |= Tokenization(frontend, bodies).routes()
    for path, post in posts.items():
        app.add_api_route(
            path,
            post,
            methods=["POST"],
            response_model=None,
            responses=responses(path),
            openapi_extra=request_body(_BODIES[path]),
        )
    facts = Facts(
        frontend, is_well=is_well, metrics=metrics, tells_tokenizer=settings.tokenizer_info
    )
    for path, get in facts.routes().items():
        said = responses(path.replace(":path", ""))
        app.add_api_route(path, get, methods=["GET"], response_model=None, responses=said)
    # Some who balance load ask so.
    app.add_route("/health", facts.health, methods=["HEAD"], include_in_schema=False)
    if metrics is not None:
        app.add_route("/metrics", facts.metrics, methods=["GET"])
    add_schemas(app, list(_BODIES.values()))
    return app


async def _no_such_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = f"{request.method} {request.url.path:.200}: {error.detail}"
    body = {"message": words, "type": "invalid_request_error", "param": None, "code": None}
    return document({"error": body}, error.status_code, dict(error.headers or {}))
