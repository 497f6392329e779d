"""A client for threads."""

import contextlib
import time
from collections.abc import Sequence
from typing import Self, TypeVar, Unpack

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serve.client import exchange
from serve.client.connection import Connection, ConnectionOptions
from serve.client.errors import AlreadyExists, Cancelled, ServerError, error_of
from serve.client.exchange import Exchange, own_id_of
from serve.client.health import INFERENCE, UNTIL_READY, has_ended, is_serving
from serve.client.messages import Message, PromptLike, generate_request
from serve.client.options import CallOptions, RequestOptions, metadata_of
from serve.client.reading import Reader
from serve.client.results import Generation, Load, ModelInfo, Score, ServerInfo
from serve.client.retry import Attempts, RetryPolicy
from serve.client.stream import Stream
from serve.proto import inference_pb2_grpc as pb_grpc

T = TypeVar("T")


class Client:
    """Asks one server, from any number of threads.

        with Client("localhost:50051") as client:
            print(client.generate("The capital of France is", temperature=0).text)
            for event in client.stream("Once upon a time", max_tokens=64):
                print(event.text, end="", flush=True)

    All methods raise ``ServerError`` where the server says no.
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
            grpc.insecure_channel(target, options)
            if credentials is None
            else grpc.secure_channel(target, credentials, options)
        )
        self._stub = pb_grpc.InferenceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    def close(self) -> None:
        """Closes the connection; what is under way ends."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def generate(self, prompt: PromptLike, **options: Unpack[RequestOptions]) -> Generation:
        """The outputs of a text, of token ids, or of a conversation (a list of messages)."""
        return self._run(exchange.generate(prompt, options), options)

    def stream(self, prompt: PromptLike, **options: Unpack[RequestOptions]) -> Stream:
        """The same as it comes. The request is on its way when this returns."""
        message = generate_request(prompt, options)
        own_id = own_id_of(message, options)
        metadata = metadata_of(options, self._metadata)
        return Stream(
            lambda timeout: self._stub.GenerateStream(message, timeout=timeout, metadata=metadata),
            self._attempts(options),
            Reader(message),
            lambda error: self._recover(error, own_id),
        )

    def chat(self, messages: Sequence[Message], **options: Unpack[RequestOptions]) -> Generation:
        """The model's turns after a conversation, through its chat template."""
        return self.generate(messages, **options)

    def stream_chat(self, messages: Sequence[Message], **options: Unpack[RequestOptions]) -> Stream:
        """The same as they come."""
        return self.stream(messages, **options)

    def score(
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
        return self._run(asked, call)

    def tokenize(
        self,
        text: str | Sequence[Message],
        *,
        add_special_tokens: bool = True,
        model: str = "",
        **call: Unpack[CallOptions],
    ) -> tuple[int, ...]:
        """The tokens of a text or a conversation."""
        asked = exchange.tokenize(text, add_special_tokens=add_special_tokens, model=model)
        return self._run(asked, call)

    def detokenize(
        self,
        token_ids: Sequence[int],
        *,
        skip_special_tokens: bool = True,
        model: str = "",
        **call: Unpack[CallOptions],
    ) -> str:
        """The text of tokens."""
        asked = exchange.detokenize(token_ids, skip_special_tokens=skip_special_tokens, model=model)
        return self._run(asked, call)

    def abort(self, request_id: str, **call: Unpack[CallOptions]) -> None:
        """Ends a request; does nothing where it has lately ended.

        Raises:
            NotFound: the server knows no such request.
        """
        self._run(exchange.abort(request_id), call)

    def model_info(self, model: str = "", **call: Unpack[CallOptions]) -> ModelInfo:
        """What is served."""
        return self._run(exchange.model_info(model), call)

    def server_info(self, **call: Unpack[CallOptions]) -> ServerInfo:
        """What serves it."""
        return self._run(exchange.server_info(), call)

    def load(self, **call: Unpack[CallOptions]) -> Load:
        """How busy it is."""
        return self._run(exchange.load(), call)

    def health(self, service: str = INFERENCE, *, timeout: float | None = None) -> bool:
        """Whether a service answers; "" is the process.

        Raises:
            ServerError: nobody is there, or no such service.
        """
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            return is_serving(self._health.Check(request, timeout=timeout, metadata=self._metadata))
        except grpc.RpcError as failed:
            raise error_of(failed) from failed

    def wait_until_ready(self, timeout: float | None = None, *, service: str = INFERENCE) -> None:
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
                if any(map(is_serving, watch)):
                    return
                error = has_ended()
            except grpc.RpcError as failed:
                error = error_of(failed)
            finally:
                watch.cancel()
            time.sleep(attempts.wait_after(error))

    def _run(self, asked: Exchange[T], call: CallOptions) -> T:
        attempts, metadata = self._attempts(call), metadata_of(call, self._metadata)
        method = getattr(self._stub, asked.method)
        while True:
            future = method.future(asked.request, timeout=attempts.timeout(), metadata=metadata)
            try:
                answer = future.result()
            except grpc.FutureCancelledError as failed:
                raise Cancelled("the client was closed") from failed
            except grpc.RpcError as failed:
                error = error_of(failed)
                error.__cause__ = failed
            else:
                return asked.read(answer)
            finally:
                future.cancel()  # an interrupt ends it on the server, too
            wait = attempts.wait_after(error)
            self._recover(error, asked.own_id)
            time.sleep(wait)

    def _attempts(self, call: CallOptions) -> Attempts:
        return Attempts(self._retry, call.get("timeout", self._timeout))

    def _recover(self, error: ServerError, own_id: str | None) -> None:
        """Before another attempt: an earlier one, whose answer was lost, may still run."""
        if isinstance(error, AlreadyExists) and own_id is not None:
            with contextlib.suppress(ServerError):
                self.abort(own_id)
