"""The service ``jaxinfer.v1.Inference``.

The methods have the wire's names. Each reads a message, asks the frontend, and writes messages.
"""

import time
from functools import partial
from typing import TypeVar

from google.protobuf.message import Message
from grpc.aio import ServicerContext

from jaxinfer.engine.request import Request
from jaxinfer.errors import InvalidParameter, InvalidPrompt
from serve.bounds import (
    require_fits,
    require_lean,
    require_sendable,
    require_sendable_prompt,
)
from serve.door import PATIENT, EventStream
from serve.frontend import Ask, Conversation, Frontend
from serve.proto import inference_pb2 as pb
from serve.proto import inference_pb2_grpc as pb_grpc
from serve.rpc.answers import answers
from serve.rpc.convert import read_ask, read_messages, read_score_ask, score_response
from serve.rpc.transcript import Transcript
from serve.score import score

T = TypeVar("T", bound=Message)


class Inference(pb_grpc.InferenceServicer):
    """One model's generation, tokens and facts."""

    def __init__(self, frontend: Frontend, *, deadline_margin: float, max_message_bytes: int):
        """
        Args:
            deadline_margin: seconds before a call's deadline at which its outputs end, so that
                their last events still reach the client; at most half of what the call leaves.
            max_message_bytes: of one answer.
        """
        self._frontend = frontend
        self._max_message_bytes = max_message_bytes
        self._margin = deadline_margin
        self._started = time.time_ns()

    @answers
    async def GenerateStream(  # noqa: N802
        self, request: pb.GenerateRequest, context: ServicerContext
    ) -> None:
        """Writes the events of a request as they come."""
        # Yielding them would cost gRPC some 10 microseconds more for each.
        ask = self._read(request, context)
        stream = await self._frontend.generate(ask, partial(self._admit, as_one=False))
        try:
            transcript = self._transcript(stream)
            await context.write(pb.GenerateEvent(prompt=transcript.prompt_info()))
            async for events in stream:
                for event in events:
                    for message in transcript.events_of(event):
                        await context.write(message)
        finally:
            stream.close()
        transcript.require_success()

    @answers
    async def Generate(  # noqa: N802
        self, request: pb.GenerateRequest, context: ServicerContext
    ) -> pb.GenerateResponse:
        """All outputs of a request."""
        ask = self._read(request, context)
        stream = await self._frontend.generate(ask, partial(self._admit, as_one=True))
        try:
            transcript = self._transcript(stream)
            async for events in stream.batches(PATIENT):
                for event in events:
                    transcript.note(event)
                transcript.require_success()  # at once: what comes of the others is not sent
        finally:
            stream.close()
        return transcript.response()

    @answers
    async def Score(self, request: pb.ScoreRequest, context: ServicerContext) -> pb.ScoreResponse:  # noqa: N802
        """How likely a text is."""
        ask = read_score_ask(request, self._timeout(context))
        return self._fitting(score_response(*await score(self._frontend, ask)))

    @answers
    async def Tokenize(  # noqa: N802
        self, request: pb.TokenizeRequest, context: ServicerContext
    ) -> pb.TokenizeResponse:
        """The tokens of a text or a conversation."""
        frontend = self._frontend
        frontend.require_model(request.model)
        special = not request.HasField("add_special_tokens") or request.add_special_tokens
        match request.WhichOneof("input"):
            case "text":
                ids = await frontend.encode(
                    request.text, add_special_tokens=special, must_fit=False
                )
            case "chat":
                chat = Conversation(messages=read_messages(request.chat))
                ids = await frontend.encode(chat, must_fit=False)
            case _:
                raise InvalidPrompt("nothing to tokenize: set text or chat")
        return self._fitting(
            pb.TokenizeResponse(token_ids=ids, max_model_len=frontend.model.max_model_len)
        )

    @answers
    async def Detokenize(  # noqa: N802
        self, request: pb.DetokenizeRequest, context: ServicerContext
    ) -> pb.DetokenizeResponse:
        """The text of tokens."""
        self._frontend.require_model(request.model)
        skip = not request.HasField("skip_special_tokens") or request.skip_special_tokens
        text = await self._frontend.decode(request.token_ids, skip_special_tokens=skip)
        return self._fitting(pb.DetokenizeResponse(text=text))

    @answers
    async def Abort(self, request: pb.AbortRequest, context: ServicerContext) -> pb.AbortResponse:  # noqa: N802
        """Ends a request."""
        self._frontend.abort(request.request_id)
        return pb.AbortResponse()

    @answers
    async def GetModelInfo(  # noqa: N802
        self, request: pb.GetModelInfoRequest, context: ServicerContext
    ) -> pb.GetModelInfoResponse:
        """What is served."""
        self._frontend.require_model(request.model)
        model = self._frontend.model
        return pb.GetModelInfoResponse(
            model=model.name,
            max_model_len=model.max_model_len,
            vocab_size=model.vocab_size,
            has_tokenizer=model.tokenizer is not None,
            **model.facts,
        )

    @answers
    async def GetServerInfo(  # noqa: N802
        self, request: pb.GetServerInfoRequest, context: ServicerContext
    ) -> pb.GetServerInfoResponse:
        """What serves it."""
        limits = self._frontend.model.engine.runner.limits
        return pb.GetServerInfoResponse(
            started=self._started,
            max_num_seqs=limits.max_num_seqs,
            max_num_batched_tokens=limits.max_num_batched_tokens,
            max_waiting_requests=limits.max_waiting_requests,
            max_waiting_tokens=limits.max_waiting_tokens,
            **self._frontend.model.server_facts,
        )

    @answers
    async def GetLoad(  # noqa: N802
        self, request: pb.GetLoadRequest, context: ServicerContext
    ) -> pb.GetLoadResponse:
        """How busy it is."""
        engine = self._frontend.model.engine
        return pb.GetLoadResponse(
            num_running=engine.num_running,
            num_waiting=engine.num_waiting,
            num_unfinished=self._frontend.num_unfinished,
            kv_cache_usage=engine.page_usage,
            num_slots=engine.runner.limits.max_num_seqs,
            is_draining=self._frontend.is_draining,
        )

    def _transcript(self, stream: EventStream) -> Transcript:
        return Transcript(
            stream.request, self._frontend.model.name, max_bytes=self._max_message_bytes
        )

    def _admit(self, request: Request, *, as_one: bool) -> None:
        """Raises InvalidParameter for a request of which a message would be too long."""
        prompt_len, params = len(request.prompt_token_ids), request.params
        limits, most = self._frontend.model.engine.runner.limits, self._max_message_bytes
        try:
            if as_one:
                require_sendable(params, prompt_len, limits.max_model_len, most)
            else:
                require_sendable_prompt(params, prompt_len, most)
        except InvalidParameter:
            # What is not allowed at all is told so, not that there is too much of it.
            params.verify(
                vocab_size=limits.vocab_size, prompt_len=prompt_len, limits=limits.request
            )
            raise

    def _fitting(self, answer: T) -> T:
        """The answer itself, where a message has room for it."""
        require_fits(answer.ByteSize(), self._max_message_bytes)
        return answer

    def _read(self, request: pb.GenerateRequest, context: ServicerContext) -> Ask:
        """What is asked for, where it is not too long to be kept."""
        ask = read_ask(request, self._timeout(context))
        self._frontend.require_room(ask.prompt)
        require_lean(request, self._frontend.max_text)
        return ask

    def _timeout(self, context: ServicerContext) -> float | None:
        """Seconds that a call leaves for its outputs."""
        remaining = context.time_remaining()
        if remaining is None:
            return None
        return remaining - min(self._margin, remaining / 2)
