"""What is served, and whether it is well."""

import time
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

import jaxinfer
from serve.errors import Draining
from serve.frontend import Frontend
from serve.http.responses import answers, document, refusal

#: Gives metrics in some text format, and the type of that.
Render = Callable[[], tuple[bytes, str]]


class Facts:
    """The endpoints that generate nothing."""

    def __init__(
        self,
        frontend: Frontend,
        *,
        is_well: Callable[[], bool],
        metrics: Render | None,
        tells_tokenizer: bool = False,
    ):
        """``is_well``: whether the model answers. ``metrics`` None: there is no such path;
        ``tells_tokenizer`` False: nor one for the tokenizer."""
        self._frontend, self._is_well, self._metrics = frontend, is_well, metrics
        self._tells_tokenizer = tells_tokenizer
        self._created = int(time.time())

    def routes(self) -> dict[str, Any]:
        """Endpoints by path."""
        return {
            "/v1/models": answers(self._models),
            "/v1/models/{model_id:path}": answers(self._model),
            "/version": answers(self._version),
            "/health": answers(self.health),
        } | ({"/tokenizer_info": answers(self._tokenizer)} if self._tells_tokenizer else {})

    async def metrics(self, request: Request) -> Response:
        """For Prometheus."""
        assert self._metrics is not None
        text, media_type = self._metrics()
        return Response(text, media_type=media_type)

    async def health(self, request: Request) -> Response:
        """200, or 503 where another server should be asked."""
        if self._frontend.is_draining or not self._is_well():
            return refusal(Draining("the model does not answer: ask another server"))
        return document({"status": "ok"})

    async def _version(self, request: Request) -> Response:
        return document({"version": jaxinfer.__version__})

    async def _tokenizer(self, request: Request) -> Response:
        """What a client needs besides ``/tokenize`` to do without a tokenizer of its own."""
        tokenizer = self._frontend.model.require_tokenizer()
        begin, ends = tokenizer.bos_token_id, tokenizer.eos_token_ids
        return document(
            {
                "tokenizer_class": type(tokenizer).__name__,
                "bos_token": None if begin is None else tokenizer.id_to_token(begin),
                # Of several, the one that ends texts comes first.
                "eos_token": tokenizer.id_to_token(ends[0]) if ends else None,
                "chat_template": tokenizer.chat_template,
            }
        )

    async def _models(self, request: Request) -> Response:
        return document({"object": "list", "data": [self._card()]})

    async def _model(self, request: Request) -> Response:
        # No name means any model elsewhere; no model has it.
        self._frontend.require_model(request.path_params["model_id"] or "/")
        return document(self._card())

    def _card(self) -> dict[str, Any]:
        model = self._frontend.model
        return {
            "id": model.name,
            "object": "model",
            "created": self._created,
            "owned_by": "jaxinfer",
            "root": model.name,
            "parent": None,
            "max_model_len": model.max_model_len,
        }
