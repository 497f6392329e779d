"""What a request's events add up to, where its outputs end in different ways."""

import pytest

from jaxinfer.engine.request import Request
from jaxinfer.errors import DeadlinePassed, InvalidParameter, StepFailed, UnsatisfiableGuide
from jaxinfer.outputs import FinishReason, Logprob, TokenEvent
from jaxinfer.sampling_params import SamplingParams
from serve.client.reading import Reader
from serve.proto import inference_pb2 as pb
from serve.rpc.transcript import Transcript

STOP, DEADLINE, ERROR = FinishReason.STOP, FinishReason.DEADLINE, FinishReason.ERROR


def transcript_of(*ends: dict) -> Transcript:
    """Of a request whose outputs ended so, one after the other."""
    request = Request(
        request_id="r", prompt_token_ids=(1,), params=SamplingParams(n=max(len(ends), 1))
    )
    transcript = Transcript(request, "tiny", max_bytes=2**14)
    for index, end in enumerate(ends):
        transcript.note(TokenEvent(request_id="r", index=index, **end))
    return transcript


GUIDE = {"finish_reason": ERROR, "error": "nothing matches", "is_unsatisfiable": True}
STEP = {"finish_reason": ERROR, "error": "the device failed"}
LATE = {"finish_reason": DEADLINE}
DONE = {"finish_reason": STOP}


@pytest.mark.parametrize(
    ("ends", "kind", "words"),
    [
        ((DONE, GUIDE, LATE), UnsatisfiableGuide, "nothing matches"),
        ((LATE, GUIDE), DeadlinePassed, "deadline"),
        ((STEP, GUIDE), StepFailed, "the device failed"),
        ((DONE, STEP), StepFailed, "the device failed"),
    ],
)
def test_the_status_is_of_the_output_that_failed_first(ends, kind, words):
    with pytest.raises(kind, match=words):
        transcript_of(*ends).require_success()


def test_outputs_that_ended_or_were_aborted_are_an_answer():
    transcript = transcript_of(DONE, {"finish_reason": FinishReason.ABORT})
    transcript.require_success()
    reasons = [output.finished.reason for output in transcript.response().outputs]
    assert reasons == [pb.STOP, pb.ABORT]


def logprobs_of(num_positions: int, *, text: str) -> tuple[dict[int, Logprob], ...]:
    entry = Logprob(logprob=-1.5, rank=1, decoded_token=text)
    return tuple(dict.fromkeys((at, at + 1), entry) for at in range(num_positions))


def long_event(num_tokens: int, **parts) -> TokenEvent:
    """What a slow reader gets, of log-probabilities with long texts, and their prompt's."""
    logprobs = logprobs_of(num_tokens, text="é" * 50)
    return TokenEvent(
        request_id="r",
        index=0,
        token_ids=tuple(range(num_tokens)),
        text="é" * num_tokens,
        logprobs=logprobs,
        prompt_logprobs=(None, *logprobs),
        **parts,
    )


@pytest.mark.parametrize(
    ("num_tokens", "is_parted"), [(1, False), (2, False), (40, False), (500, True)]
)
def test_what_one_message_has_no_room_for_comes_as_several(num_tokens, is_parted):
    request = Request(request_id="r" * 256, prompt_token_ids=(1,), params=SamplingParams())
    event = long_event(num_tokens, finish_reason=STOP)
    parts = list(Transcript(request, "tiny", max_bytes=2**14).events_of(event))
    [*_, delta, end] = Transcript(request, "tiny", max_bytes=2**26).events_of(event)
    assert all(part.ByteSize() <= 2**14 for part in parts)
    assert (len(parts) > 3) is is_parted
    assert parts[-1] == end
    added, prompt = pb.TokenDelta(index=0), []
    for part in parts:
        added.MergeFrom(pb.TokenDelta(token_ids=part.delta.token_ids, logprobs=part.delta.logprobs))
        prompt += part.prompt.logprobs
    added.text = "".join(part.delta.text for part in parts)
    assert added == delta.delta
    assert prompt == list(delta.delta.logprobs)  # of the same tokens
    reader = Reader(pb.GenerateRequest(sampling=pb.Sampling(n=1)))
    for part in parts:
        reader.take(part)
    result = reader.result()
    assert result.outputs[0].token_ids == event.token_ids
    assert result.outputs[0].logprobs == event.logprobs
    assert result.prompt_logprobs == event.prompt_logprobs


def test_an_answer_that_has_no_room_ends_when_that_is_known():
    request = Request(request_id="r", prompt_token_ids=(1,), params=SamplingParams())
    transcript = Transcript(request, "tiny", max_bytes=2**14)
    for _ in range(2**14 // 500):  # of more than 400 bytes each, and less than 500
        transcript.note(long_event(1))
    with pytest.raises(InvalidParameter, match="at most 16384"):
        [transcript.note(long_event(1)) for _ in range(10)]


def test_an_answer_that_just_fits_is_one():
    request = Request(request_id="r", prompt_token_ids=(1,), params=SamplingParams())
    event = long_event(40, finish_reason=STOP)
    free = Transcript(request, "tiny", max_bytes=2**26)
    free.note(event)
    size = free.response().ByteSize()
    for max_bytes in (size - 1, size):
        transcript = Transcript(request, "tiny", max_bytes=max_bytes)
        transcript.note(event)
        if max_bytes == size:
            assert transcript.response() == free.response()
        else:
            with pytest.raises(InvalidParameter, match=f"{size} bytes or more"):
                transcript.response()
