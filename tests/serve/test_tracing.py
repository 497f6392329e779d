"""Spans of requests, in the traces of their callers."""

import sys

import grpc
import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from jaxinfer.errors import InvalidParameter, Unsupported
from serve.proto import inference_pb2 as pb
from serve.settings import ServeSettings
from serve.tracing import Tracing
from tests.serve.house import CANARY, in_loop, served

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = (f"00-{TRACE}-{PARENT}-{flags}" for flags in ("01", "00"))


class Traced:
    """A tracing whose spans a test looks at."""

    def __init__(self):
        self.exporter, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracing = Tracing(provider, "tiny")

    @property
    def requests(self):
        return [span for span in self.exporter.get_finished_spans() if span.name == "llm_request"]

    def phases_of(self, request):
        return {
            span.name: span
            for span in self.exporter.get_finished_spans()
            if span.parent is not None and span.parent.span_id == request.context.span_id
        }


def traced(traced: Traced):
    return served(tracing=traced.tracing)


@in_loop
async def test_a_request_is_a_span_with_its_phases_in_the_trace_of_its_caller():
    spans = Traced()
    async with traced(spans) as tested:
        metadata = [("traceparent", SAMPLED), ("tracestate", "vendor=1")]
        request = pb.GenerateRequest(
            request_id="r",
            token_ids=pb.TokenIds(ids=[3, 1, 4]),
            sampling=pb.Sampling(temperature=0.5, n=2, seed=7),
            stopping=pb.Stopping(max_tokens=6, ignore_eos=True),
        )
        await tested.stub.Generate(request, metadata=metadata)
    [span] = spans.requests
    assert format(span.context.trace_id, "032x") == TRACE
    assert format(span.parent.span_id, "016x") == PARENT
    assert span.context.trace_state.get("vendor") == "1"
    assert span.kind is SpanKind.SERVER
    told = dict(span.attributes)
    latencies = {
        name.removeprefix("gen_ai.latency."): told.pop(name)
        for name in tuple(told)
        if name.startswith("gen_ai.latency.")
    }
    assert told == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.request.model": "tiny",
        "gen_ai.request.id": "r",
        "gen_ai.request.n": 2,
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.max_tokens": 6,
        "gen_ai.request.seed": 7,
        "gen_ai.response.model": "tiny",
        "gen_ai.response.id": "r",
        "gen_ai.response.finish_reasons": ("length", "length"),
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 12,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.prompt_tokens": 3,
        "gen_ai.usage.completion_tokens": 12,
        "gen_ai.usage.num_sequences": 2,
    }
    phases = spans.phases_of(span)
    assert set(phases) == {"queue", "prefill", "decode"}
    ends = [span.start_time]
    for name in ("queue", "prefill", "decode"):
        assert phases[name].end_time >= phases[name].start_time >= ends[-1] - 10**6
        ends.append(phases[name].end_time)
    assert span.end_time >= ends[-1] - 10**6
    assert latencies["time_in_model_inference"] == pytest.approx(
        latencies["time_in_model_prefill"] + latencies["time_in_model_decode"]
    )
    assert 0 <= latencies["time_in_queue"] <= latencies["time_to_first_token"] <= latencies["e2e"]


@in_loop
async def test_a_request_over_http_is_one_too():
    spans = Traced()
    settings = ServeSettings(grpc_port=0, http_port=0)
    async with served(settings, tracing=spans.tracing) as tested, httpx.AsyncClient() as client:
        for path, body in (
            ("completions", {"prompt": "abc"}),
            ("chat/completions", {"messages": [{"role": "user", "content": "abc"}]}),
        ):
            answer = await client.post(
                f"http://127.0.0.1:{tested.server.http_port}/v1/{path}",
                json={"model": "tiny", "max_tokens": 3, **body},
                headers={"traceparent": SAMPLED},
            )
            assert answer.status_code == 200, answer.text
    completion, chat = spans.requests
    for span in (completion, chat):
        assert format(span.parent.span_id, "016x") == PARENT
    assert completion.attributes["gen_ai.operation.name"] == "text_completion"
    assert chat.attributes["gen_ai.operation.name"] == "chat"


@pytest.mark.parametrize(
    "parent",
    ["", "00", "zz" + SAMPLED[2:], SAMPLED[:-3], SAMPLED.replace(TRACE, "0" * 32), "x" * 10_000],
)
@in_loop
async def test_a_malformed_parent_is_no_parent(parent):
    spans = Traced()
    async with traced(spans) as tested:
        assert len(await tested.tokens(CANARY, metadata=[("traceparent", parent)])) == 12
    [span] = spans.requests
    assert span.parent is None


@in_loop
async def test_what_the_caller_does_not_sample_leaves_nothing():
    spans = Traced()
    async with traced(spans) as tested:
        assert len(await tested.tokens(CANARY, metadata=[("traceparent", UNSAMPLED)])) == 12
    assert spans.exporter.get_finished_spans() == ()


@in_loop
async def test_a_refused_request_has_no_span_and_one_that_is_left_says_so():
    spans = Traced()
    async with traced(spans) as tested:
        refused = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[]))
        with pytest.raises(grpc.aio.AioRpcError):
            await tested.tokens(refused)
        assert spans.requests == []
        endless = pb.GenerateRequest(
            token_ids=pb.TokenIds(ids=[1]), stopping=pb.Stopping(ignore_eos=True)
        )
        call = tested.stub.GenerateStream(endless)
        await call.read()
        call.cancel()
        await tested.idle()
    [span] = spans.requests
    assert span.attributes["gen_ai.response.finish_reasons"] == ("abort",)
    assert span.status.status_code is StatusCode.UNSET


def test_without_the_package_an_endpoint_is_refused_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter", None)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    with pytest.raises(Unsupported, match=r"pip install 'jaxinfer\[trace\]'"):
        Tracing.to("http://localhost:4317", "tiny")


def test_an_endpoint_is_an_address():
    pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc.trace_exporter")
    with pytest.raises(InvalidParameter, match="http://host:port"):
        Tracing.to("localhost", "tiny")
    assert ServeSettings().otlp_endpoint is None
