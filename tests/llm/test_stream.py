"""A stream loses no event, whoever takes the engine's steps."""

import pytest

from jaxinfer.errors import InvalidPrompt
from jaxinfer.llm.prompts import Prompt
from jaxinfer.llm.stream import RequestStream
from jaxinfer.outputs import TokenEvent
from jaxinfer.sampling_params import SamplingParams


class HastyEngine:
    """Ends a request while it is being submitted, as a step of another thread may."""

    def submit(self, request, on_events):
        if not request.prompt_token_ids:
            raise InvalidPrompt("empty")
        on_events([TokenEvent(request_id=request.request_id, index=0, finish_reason="stop")])


def never():
    raise AssertionError("nothing is left to be done")


def stream_of(*prompts):
    return RequestStream(
        HastyEngine(),
        never,
        [Prompt(text=None, token_ids=ids) for ids in prompts],
        [SamplingParams()] * len(prompts),
        [str(number) for number in range(len(prompts))],
    )


def test_events_that_come_during_submission_are_not_lost():
    stream = stream_of([1], [2])
    assert [event.request_id for event in stream] == ["0", "1"]
    assert stream.num_finished == 2


def test_a_refused_request_is_not_waited_for():
    with pytest.raises(InvalidPrompt, match="empty"):
        stream_of([1], [])
