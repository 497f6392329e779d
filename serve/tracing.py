"""A span of OpenTelemetry for each request, in the trace that its call belongs to.

The names are those of the semantic conventions for generative models, and besides them vLLM's, for
dashboards that know these.
"""

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Self

from jaxinfer.engine.request import Request
from jaxinfer.errors import InvalidParameter, Unsupported
from jaxinfer.outputs import FinishReason, RequestMetrics, TokenEvent
from serve.frontend import Ask, Conversation

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider

SPAN = "llm_request"
#: Characters of the headers that are looked at.
_HEADERS = {"traceparent": 256, "tracestate": 512}


class Tracing:
    """Makes the spans; an ``Observer``. Requests that were refused have none."""

    def __init__(self, provider: "TracerProvider", model: str):
        """``model``: what clients call it."""
        # Here, because who does not trace need not have it.
        from opentelemetry import context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self.model = model
        self._context, self._propagator = context, TraceContextTextMapPropagator()
        self.tracer = provider.get_tracer("jaxinfer")
        self._provider = provider

    @classmethod
    def to(cls, endpoint: str, model: str) -> Self:
        """Sends them to a collector, by OTLP over gRPC, from a thread of its own.

        Args:
            endpoint: ``http://host:port``, or https.

        Raises:
            Unsupported: OpenTelemetry is not installed.
            InvalidParameter: no such address.
        """
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import SERVICE_NAME, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise Unsupported(
                f"otlp_endpoint = {endpoint!r}: {error}: pip install 'jaxinfer[trace]'"
            ) from error
        if not endpoint.startswith(("http://", "https://")):
            raise InvalidParameter(
                f"otlp_endpoint = {endpoint!r:.200} is not allowed: it must be http://host:port, or"
                " https"
            )
        provider = TracerProvider(resource=Resource.create({SERVICE_NAME: "jaxinfer"}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        return cls(provider, model)

    def enter(self, pairs: Iterable[tuple[str, str | bytes]]) -> None:
        """What is begun in this task from now on belongs to the trace that a call's metadata, or
        headers with small letters, name (W3C trace context). What is malformed names none."""
        found = {}
        for name, value in pairs:
            if name in _HEADERS and isinstance(value, str) and len(value) <= _HEADERS[name]:
                found[name] = value
        self._context.attach(self._propagator.extract(found))

    @property
    def current(self) -> "Context":
        """Which trace that is."""
        return self._context.get_current()

    def begin(self, ask: Ask, request: Request, arrival: float) -> "RequestSpan":
        """See ``Observer``."""
        return RequestSpan(self, ask, request, arrival)

    def close(self) -> None:
        """Sends what has not been sent, which may take seconds."""
        self._provider.shutdown()


class RequestSpan:
    """What a request's span will say; a ``Watch``. It is made when the last output has ended."""

    def __init__(self, tracing: Tracing, ask: Ask, request: Request, arrival: float):
        self._tracing, self._ask, self._request, self._arrival = tracing, ask, request, arrival
        self._context = tracing.current
        self._first_token: float | None = None
        self._num_tokens = 0
        self._reasons: dict[int, FinishReason] = {}
        self._error: str | None = None

    def note(self, event: TokenEvent, now: float) -> None:
        """See ``Watch``."""
        self._num_tokens += len(event.token_ids)
        if event.token_ids and self._first_token is None:
            self._first_token = now
        self._error = self._error or event.error
        if event.finish_reason is not None:
            self._reasons[event.index] = event.finish_reason
            if len(self._reasons) == self._request.params.n:
                self._make(event, now)

    def _make(self, last: TokenEvent, now: float) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        tracing, times = self._tracing, last.metrics
        span = tracing.tracer.start_span(
            SPAN, self._context, kind=SpanKind.SERVER, start_time=_nanoseconds(self._arrival)
        )
        if span.is_recording():
            span.set_attributes(self._asked() | self._used(last) | self._latencies(times, now))
            if self._error is not None:
                span.set_status(Status(StatusCode.ERROR, self._error))
            inside = set_span_in_context(span, self._context)
            for name, since, until in _phases(times):
                phase = tracing.tracer.start_span(name, inside, start_time=_nanoseconds(since))
                phase.end(_nanoseconds(until))
        span.end(_nanoseconds(now))

    def _asked(self) -> dict[str, Any]:
        params = self._request.params
        is_chat = isinstance(self._ask.prompt, Conversation)
        found = {
            "gen_ai.operation.name": "chat" if is_chat else "text_completion",
            "gen_ai.request.model": self._ask.model or self._tracing.model,
            "gen_ai.request.id": self._request.request_id,
            "gen_ai.request.n": params.n,
            "gen_ai.request.choice.count": params.n,
            "gen_ai.request.temperature": params.temperature,
            "gen_ai.request.top_p": params.top_p,
            "gen_ai.request.max_tokens": params.max_tokens,
            "gen_ai.request.seed": params.seed,
        }
        return {name: value for name, value in found.items() if value is not None}

    def _used(self, last: TokenEvent) -> dict[str, Any]:
        prompt_len = len(self._request.prompt_token_ids)
        return {
            "gen_ai.response.model": self._tracing.model,
            "gen_ai.response.id": self._request.request_id,
            "gen_ai.response.finish_reasons": [
                str(self._reasons[index]) for index in sorted(self._reasons)
            ],
            "gen_ai.usage.input_tokens": prompt_len,
            "gen_ai.usage.output_tokens": self._num_tokens,
            "gen_ai.usage.cache_read.input_tokens": last.num_cached_tokens,
            "gen_ai.usage.prompt_tokens": prompt_len,
            "gen_ai.usage.completion_tokens": self._num_tokens,
            "gen_ai.usage.num_sequences": self._request.params.n,
        }

    def _latencies(self, times: RequestMetrics | None, now: float) -> dict[str, Any]:
        found = {"e2e": now - self._arrival}
        if self._first_token is not None:
            found["time_to_first_token"] = self._first_token - self._arrival
        lasted = {name: until - since for name, since, until in _phases(times)}
        if "queue" in lasted:
            found["time_in_queue"] = lasted["queue"]
        if "prefill" in lasted:
            found["time_in_model_prefill"] = lasted["prefill"]
            found["time_in_model_decode"] = lasted["decode"]
            found["time_in_model_inference"] = lasted["prefill"] + lasted["decode"]
        return {f"gen_ai.latency.{name}": seconds for name, seconds in found.items()}


def _phases(times: RequestMetrics | None) -> list[tuple[str, float, float]]:
    """``(name, since, until)`` of those that came to their end."""
    if times is None or times.first_scheduled_time is None:
        return []
    phases = [("queue", times.arrival_time, times.first_scheduled_time)]
    if times.first_token_time is not None and times.last_token_time is not None:
        phases.append(("prefill", times.first_scheduled_time, times.first_token_time))
        phases.append(("decode", times.first_token_time, times.last_token_time))
    return phases


def _nanoseconds(seconds: float) -> int:
    """Of ``time.monotonic`` as those of the calendar."""
    return int(seconds * 1e9) + time.time_ns() - time.monotonic_ns()
