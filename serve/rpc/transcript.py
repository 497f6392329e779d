"""What a request's events say to a client: messages one by one, or all of them as one."""

from collections.abc import Iterator

from jaxinfer.engine.request import Request
from jaxinfer.errors import DeadlinePassed, JaxInferError
from jaxinfer.outputs import FinishReason, TokenEvent
from serve.bounds import require_fits
from serve.proto import inference_pb2 as pb
from serve.rpc.convert import delta_of, finished_of, positions
from serve.rpc.parts import ROOM_BESIDES, delta_parts, prompt_parts
from serve.statuses import message_of, status_of

#: Bytes of a delta besides its text, tokens and log-probabilities, at most.
_FRAME = 16


class Transcript:
    """Counts tokens by output, and writes down what ``note`` is told."""

    def __init__(self, request: Request, model: str, *, max_bytes: int):
        """``max_bytes``: of a message."""
        self._request, self._model = request, model
        self._max_bytes = max_bytes
        self._part_bytes = max_bytes - ROOM_BESIDES
        self._num_bytes = 0
        self._num_tokens = [0] * request.params.n
        self._failure: JaxInferError | None = None
        self._outputs = [pb.GeneratedOutput(index=index) for index in range(request.params.n)]
        self._prompt = self.prompt_info()

    def prompt_info(self) -> pb.PromptInfo:
        """The request was accepted."""
        return pb.PromptInfo(
            request_id=self._request.request_id,
            model=self._model,
            prompt_tokens=len(self._request.prompt_token_ids),
        )

    def require_success(self) -> None:
        """Raises what an output failed with, the first of those that did.

        Raises:
            StepFailed, UnsatisfiableGuide: it ended with ERROR.
            DeadlinePassed: with DEADLINE.
        """
        if self._failure is not None:
            raise self._failure

    def events_of(self, event: TokenEvent) -> Iterator[pb.GenerateEvent]:
        """An event as messages: a prompt, a delta, an error and an end, as far as it has them. What
        no message has room for is several of them."""
        if event.prompt_logprobs is not None:
            info = self.prompt_info()
            info.logprobs.extend(positions(event.prompt_logprobs))
            for part in prompt_parts(info, self._part_bytes):
                yield pb.GenerateEvent(prompt=part)
        if event.token_ids or event.text:
            self._num_tokens[event.index] += len(event.token_ids)
            for delta in delta_parts(delta_of(event), self._part_bytes):
                yield pb.GenerateEvent(delta=delta)
        if (failure := event.failure) is not None:
            self._failure = self._failure or failure
            code, _ = status_of(failure).grpc.value
            yield pb.GenerateEvent(error=pb.Error(code=code, message=message_of(failure)))
        elif event.finish_reason is FinishReason.DEADLINE:
            self._failure = self._failure or DeadlinePassed(
                "the deadline has passed before all was generated"
            )
        if event.finish_reason is not None:
            yield pb.GenerateEvent(finished=self._finished(event))

    def note(self, event: TokenEvent) -> None:
        """Adds an event to the response.

        Raises:
            InvalidParameter: it has no room for that.
        """
        output = self._outputs[event.index]
        for message in self.events_of(event):
            match message.WhichOneof("event"):
                case "prompt":
                    for position in message.prompt.logprobs:
                        self._take_room(position.ByteSize())
                    self._prompt.logprobs.extend(message.prompt.logprobs)
                case "delta":
                    self._take_room(message.delta.ByteSize() - _FRAME)
                    output.text += message.delta.text
                    output.token_ids.extend(message.delta.token_ids)
                    output.logprobs.extend(message.delta.logprobs)
                case "finished":
                    output.finished.CopyFrom(message.finished)

    def response(self) -> pb.GenerateResponse:
        """All that was noted.

        Raises:
            InvalidParameter: no message has room for it.
        """
        response = pb.GenerateResponse(prompt=self._prompt, outputs=self._outputs)
        require_fits(response.ByteSize(), self._max_bytes)
        return response

    def _take_room(self, num_bytes: int) -> None:
        """Of the response, so that nothing is generated for one that cannot be sent."""
        self._num_bytes += max(num_bytes, 0)
        require_fits(self._num_bytes, self._max_bytes)

    def _finished(self, event: TokenEvent) -> pb.Finished:
        assert event.finish_reason is not None
        return finished_of(
            event,
            prompt_len=len(self._request.prompt_token_ids),
            num_tokens=self._num_tokens[event.index],
        )
