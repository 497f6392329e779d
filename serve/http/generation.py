"""``/v1/completions`` and ``/v1/chat/completions``."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from serve.frontend import Frontend
from serve.http.bodies import BodyReader, read_timeout
from serve.http.responses import EventStream, answers, document, while_there
from serve.openai import answer, read_body, stream_batches


def generation(frontend: Frontend, bodies: BodyReader) -> Callable[..., Awaitable[Response]]:
    """The endpoint, for either path."""

    @answers
    async def generate(request: Request) -> Response:
        body = await bodies.read_json(request)
        ask = read_body(
            request.scope["path"],
            body,
            timeout=read_timeout(request),
            max_prompts=frontend.model.request_limits.max_prompts,
        )
        if not ask.stream:
            return document(await while_there(request.receive, answer(frontend, ask)))
        batches = stream_batches(frontend, ask)
        try:
            # An empty one says that the request was accepted: until then there is a status.
            await while_there(request.receive, anext(batches))
        except BaseException:
            await batches.aclose()
            raise
        return EventStream(batches)

    return generate
