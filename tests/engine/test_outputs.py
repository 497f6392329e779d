"""Events add up to outputs."""

from jaxinfer.outputs import FinishReason, Logprob, RequestMetrics, TokenEvent, gather_events


def gather(events, **fields):
    names = {"request_id": "r", "prompt": "p", "prompt_token_ids": [1, 2]} | fields
    return gather_events(events, **names)


def test_texts_and_tokens_of_each_output_are_joined_in_order():
    metrics = RequestMetrics(arrival_time=1.0, finished_time=2.0)
    output = gather(
        [
            TokenEvent(request_id="r", index=1, token_ids=(7,), text="x", num_cached_tokens=4),
            TokenEvent(request_id="r", index=0, token_ids=(8,), text="y"),
            TokenEvent(
                request_id="r",
                index=1,
                token_ids=(9,),
                text="z",
                finish_reason=FinishReason.STOP,
                stop_reason=9,
                metrics=metrics,
            ),
        ],
        num_outputs=2,
    )
    assert [(o.index, o.text, o.token_ids) for o in output.outputs] == [
        (0, "y", (8,)),
        (1, "xz", (7, 9)),
    ]
    assert [o.finish_reason for o in output.outputs] == [None, "stop"]
    assert output.outputs[1].stop_reason == 9
    assert not output.finished
    assert output.metrics == metrics
    assert output.num_cached_tokens == 4


def test_the_cumulative_logprob_is_the_sum_over_the_sampled_tokens():
    entries = [{5: Logprob(logprob=-1.5)}, {6: Logprob(logprob=-0.25), 7: Logprob(logprob=-0.1)}]
    events = [
        TokenEvent(request_id="r", index=0, token_ids=(token,), logprobs=(entry,))
        for token, entry in zip((5, 6), entries, strict=True)
    ]
    [output] = gather(events).outputs
    assert output.cumulative_logprob == -1.75
    assert output.logprobs == tuple(entries)


def test_without_logprobs_there_are_none():
    [output] = gather([TokenEvent(request_id="r", index=0, token_ids=(5,))]).outputs
    assert output.logprobs is None
    assert output.cumulative_logprob is None


def test_a_request_without_events_has_empty_outputs():
    output = gather([])
    assert output.outputs[0].text == ""
    assert not output.finished


def test_prompt_logprobs_come_from_the_event_that_has_them():
    shown = (None, {2: Logprob(logprob=-3.0)})
    events = [
        TokenEvent(request_id="r", index=0, prompt_logprobs=shown),
        TokenEvent(request_id="r", index=0, finish_reason=FinishReason.ABORT),
    ]
    output = gather(events)
    assert output.prompt_logprobs == shown
    assert output.finished
