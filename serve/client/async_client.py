"""A client for event loops."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Self, TypeVar, Unpack

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serve.client import exchange
from serve.client.connection import Connection, ConnectionOptions
from serve.client.errors import AlreadyExists, ServerError, error_of
from serve.client.exchange import Exchange, own_id_of
from serve.client.health import INFERENCE, UNTIL_READY, has_ended, is_serving
from serve.client.messages import Message, PromptLike, generate_request
from serve.client.options import CallOptions, RequestOptions, metadata_of
from serve.client.reading import Reader
from serve.client.results import Generation, Load, ModelInfo, Score, ServerInfo
from serve.client.retry import Attempts, RetryPolicy
from serve.client.stream import AsyncStream, require_own_cancellation
from serve.proto import inference_pb2_grpc as pb_grpc

T = TypeVar("T")


class AsyncClient:
    """Asks one server, from the event loop that it is made in.

        async with AsyncClient("localhost:50051") as client:
            print((await client.generate("The capital of France is", temperature=0)).text)
            async for event in client.stream("Once upon a time", max_tokens=64):
                print(event.text, end="", flush=True)

    The methods are those of ``Client``; a task that is cancelled takes its request along.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
        **connection: Unpack[ConnectionOptions],
    ):
        """
        Args:
            target: ``HOST:PORT``.
            timeout: seconds for calls that are given none; None: no end.
            retry: what is tried again, and when.
            connection: token and certificates: the fields of ``Connection``.

        Raises:
            InvalidParameter: certificates that cannot be read.
        """
        to = Connection(target=target, **connection)
        self._metadata, self._timeout, self._retry = to.metadata, timeout, retry or RetryPolicy()
        credentials, options = to.credentials, list(to.options)
        self._channel = (
            grpc.aio.insecure_channel(target, options)
            if credentials is None
            else grpc.aio.secure_channel(target, credentials, options)
        )
        self._stub = pb_grpc.InferenceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    async def close(self) -> None:
        """Closes the connection; what is under way ends."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def generate(self, prompt: PromptLike, **options: Unpack[RequestOptions]) -> Generation:
        """The outputs of a text, of token ids, or of a conversation (a list of messages)."""
        return await self._run(exchange.generate(prompt, options), options)

    def stream(self, prompt: PromptLike, **options: Unpack[RequestOptions]) -> AsyncStream:
        """The same as it comes. The request is on its way when this returns."""
        message = generate_request(prompt, options)
        own_id = own_id_of(message, options)
        metadata = metadata_of(options, self._metadata)
        return AsyncStream(
            lambda timeout: self._stub.GenerateStream(message, timeout=timeout, metadata=metadata),
            self._attempts(options),
            Reader(message),
            lambda error: self._recover(error, own_id),
        )

    async def chat(
        self, messages: Sequence[Message], **options: Unpack[RequestOptions]
    ) -> Generation:
        """The model's turns after a conversation, through its chat template."""
        return await self.generate(messages, **options)

    def stream_chat(
        self, messages: Sequence[Message], **options: Unpack[RequestOptions]
    ) -> AsyncStream:
        """The same as they come."""
        return self.stream(messages, **options)

    async def score(
        self,
        prompt: str | Sequence[int],
        continuation: str | Sequence[int] | None = None,
        *,
        model: str = "",
        priority: int = 0,
        **call: Unpack[CallOptions],
    ) -> Score:
        """How likely a continuation is after a prompt; without one, the prompt itself."""
        asked = exchange.score(prompt, continuation, model=model, priority=priority)
        return await self._run(asked, call)

    async def tokenize(
        self,
        text: str | Sequence[Message],
        *,
        add_special_tokens: bool = True,
        model: str = "",
        **call: Unpack[CallOptions],
    ) -> tuple[int, ...]:
        """The tokens of a text or a conversation."""
        asked = exchange.tokenize(text, add_special_tokens=add_special_tokens, model=model)
        return await self._run(asked, call)

    async def detokenize(
        self,
        token_ids: Sequence[int],
        *,
        skip_special_tokens: bool = True,
        model: str = "",
        **call: Unpack[CallOptions],
    ) -> str:
        """The text of tokens."""
        asked = exchange.detokenize(token_ids, skip_special_tokens=skip_special_tokens, model=model)
        return await self._run(asked, call)

    async def abort(self, request_id: str, **call: Unpack[CallOptions]) -> None:
        """Ends a request; does nothing where it has lately ended.

        Raises:
            NotFound: the server knows no such request.
        """
        await self._run(exchange.abort(request_id), call)

    async def model_info(self, model: str = "", **call: Unpack[CallOptions]) -> ModelInfo:
        """What is served."""
        return await self._run(exchange.model_info(model), call)

    async def server_info(self, **call: Unpack[CallOptions]) -> ServerInfo:
        """What serves it."""
        return await self._run(exchange.server_info(), call)

    async def load(self, **call: Unpack[CallOptions]) -> Load:
        """How busy it is."""
        return await self._run(exchange.load(), call)

    async def health(self, service: str = INFERENCE, *, timeout: float | None = None) -> bool:
        """Whether a service answers; "" is the process.

        Raises:
            ServerError: nobody is there, or no such service.
        """
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            return is_serving(
                await self._health.Check(request, timeout=timeout, metadata=self._metadata)
            )
        except grpc.RpcError as failed:
            raise error_of(failed) from failed

    async def wait_until_ready(
        self, timeout: float | None = None, *, service: str = INFERENCE
    ) -> None:
        """Waits for a server that is about to start, or to answer again.

        Raises:
            DeadlineExceeded: it did not in ``timeout`` seconds.
        """
        attempts = Attempts(UNTIL_READY, timeout)
        request = health_pb2.HealthCheckRequest(service=service)
        while True:
            watch = self._health.Watch(
                request, timeout=attempts.timeout(), metadata=self._metadata, wait_for_ready=True
            )
            try:
                async for response in watch:
                    if is_serving(response):
                        return
                error = has_ended()
            except grpc.RpcError as failed:
                error = error_of(failed)
            finally:
                watch.cancel()
            await asyncio.sleep(attempts.wait_after(error))

    async def _run(self, asked: Exchange[T], call: CallOptions) -> T:
        attempts, metadata = self._attempts(call), metadata_of(call, self._metadata)
        method = getattr(self._stub, asked.method)
        while True:
            try:
                answer = await method(asked.request, timeout=attempts.timeout(), metadata=metadata)
            except asyncio.CancelledError:
                require_own_cancellation()
                raise
            except grpc.RpcError as failed:
                error = error_of(failed)
                error.__cause__ = failed
            else:
                return asked.read(answer)
            wait = attempts.wait_after(error)
            await self._recover(error, asked.own_id)
            await asyncio.sleep(wait)

    def _attempts(self, call: CallOptions) -> Attempts:
        return Attempts(self._retry, call.get("timeout", self._timeout))

    async def _recover(self, error: ServerError, own_id: str | None) -> None:
        """Before another attempt: an earlier one, whose answer was lost, may still run."""
        if isinstance(error, AlreadyExists) and own_id is not None:
            with contextlib.suppress(ServerError):
                await self.abort(own_id)
