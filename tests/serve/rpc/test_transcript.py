"""What a request's events add up to, where its outputs end in different ways."""

import pytest

from jaxinfer.engine.request import Request
from jaxinfer.errors import DeadlinePassed, StepFailed, UnsatisfiableGuide
from jaxinfer.outputs import FinishReason, TokenEvent
from jaxinfer.sampling_params import SamplingParams
from serve.proto import inference_pb2 as pb
from serve.rpc.transcript import Transcript

STOP, DEADLINE, ERROR = FinishReason.STOP, FinishReason.DEADLINE, FinishReason.ERROR


def transcript_of(*ends: dict) -> Transcript:
    """Of a request whose outputs ended so, one after the other."""
    request = Request(
        request_id="r", prompt_token_ids=(1,), params=SamplingParams(n=max(len(ends), 1))
    )
    transcript = Transcript(request, "tiny")
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
