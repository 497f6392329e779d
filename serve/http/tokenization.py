"""``/tokenize`` and ``/detokenize``, with vLLM's bodies."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from jaxinfer.errors import InvalidPrompt
from serve.frontend import Conversation, Frontend
from serve.http.bodies import BodyReader
from serve.http.responses import answers, document
from serve.openai.bodies import Body, Messages
from serve.openai.prompts import read_messages
from serve.openai.validation import validated


class TokenizeBody(Body):
    """A text or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(Body):
    """Token ids."""

    model: str | None = None
    tokens: list[int]


class Tokenization:
    """Both endpoints."""

    def __init__(self, frontend: Frontend, bodies: BodyReader):
        self._frontend, self._bodies = frontend, bodies

    def routes(self) -> dict[str, Any]:
        """Endpoints by path."""
        return {"/tokenize": answers(self._tokenize), "/detokenize": answers(self._detokenize)}

    async def _tokenize(self, request: Request) -> Response:
        frontend = self._frontend
        read = validated(TokenizeBody, await self._bodies.read_json(request))
        frontend.require_model(read.model or "")
        if (read.prompt is None) == (read.messages is None):
            raise InvalidPrompt("nothing to tokenize, or too much: set prompt or messages")
        if read.messages is not None:
            generation = read.add_generation_prompt
            template = {} if generation is None else {"add_generation_prompt": generation}
            messages = read_messages(read.messages)
            ids = await frontend.encode(Conversation(messages=messages, template=template))
        else:
            special = read.add_special_tokens is None or read.add_special_tokens
            ids = await frontend.encode(read.prompt or "", add_special_tokens=special)
        answer = {
            "count": len(ids),
            "max_model_len": frontend.model.max_model_len,
            "tokens": list(ids),
            "token_strs": None,
        }
        if read.return_token_strs:
            spell = frontend.model.require_tokenizer().id_to_token
            answer["token_strs"] = [spell(token_id) for token_id in ids]
        return document(answer)

    async def _detokenize(self, request: Request) -> Response:
        read = validated(DetokenizeBody, await self._bodies.read_json(request))
        self._frontend.require_model(read.model or "")
        text = await self._frontend.decode(read.tokens, skip_special_tokens=False)
        return document({"prompt": text})
