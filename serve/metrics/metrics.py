"""What is told at a scrape: read then, from counters that are kept anyhow."""

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from serve.metrics.histogram import Histogram
from serve.metrics.requests import RequestTotals
from serve.model import ServedModel

Family = TypeVar("Family", bound=Metric)


class Metrics:
    """The metrics of one server, in a registry of its own.

    Attributes:
        requests: what becomes of requests; the observer of a ``Frontend``.
    """

    def __init__(self, model: ServedModel):
        self.requests = RequestTotals()
        self._registry = CollectorRegistry(auto_describe=False)
        ours = {"model_name": model.name}
        self._registry.register(_Families("jaxinfer", ours, model, self.requests))
        # Dashboards made for vLLM find the same figures under its names and labels.
        theirs = ours | {"engine": "0"}
        self._registry.register(_Families("vllm", theirs, model, self.requests))

    def render(self) -> tuple[bytes, str]:
        """All of them in Prometheus' text format, and its content type. Any thread may ask."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


class _Families(Collector):
    """All metrics under one prefix."""

    def __init__(
        self, prefix: str, labels: Mapping[str, str], model: ServedModel, requests: RequestTotals
    ):
        self._prefix, self._model, self._requests = prefix, model, requests
        self._names, self._values = list(labels), list(labels.values())

    def collect(self) -> Iterator[Metric]:
        """Called at each scrape."""
        yield from self._load()
        yield from self._work()
        yield from self._durations()
        yield from self._server()

    def _load(self) -> Iterator[Metric]:
        engine = self._model.engine
        yield self._gauge("num_requests_running", "Sequences in slots.", engine.num_running)
        yield self._gauge("num_requests_waiting", "Sequences in the queue.", engine.num_waiting)
        yield self._gauge(
            "kv_cache_usage_perc", "Pages in use, 1 being all of them.", engine.page_usage
        )

    def _work(self) -> Iterator[Metric]:
        stats = self._model.engine.stats
        for name, text, value in (
            ("num_preemptions", "Times a sequence lost its pages.", stats.num_preemptions),
            (
                "prefix_cache_queries",
                "Tokens that were looked up in the prefix cache.",
                stats.prefix_query_tokens,
            ),
            ("prefix_cache_hits", "Those of them that it held.", stats.prefix_hit_tokens),
            (
                "prompt_tokens",
                "Prompt tokens of requests that brought a token.",
                self._requests.num_prompt_tokens,
            ),
            ("generation_tokens", "Tokens that were sampled.", stats.num_generated_tokens),
            (
                "compiles_after_ready",
                "Programs compiled since the server was ready; each held up a step.",
                self._model.num_compiles(),
            ),
        ):
            yield self._counter(name, text, value)
        for name, text, seconds in (
            ("step_host_seconds", "Of a step, not waiting for the device.", stats.host_seconds),
            ("step_device_seconds", "Of a step, on the device.", stats.device_seconds),
        ):
            summary = SummaryMetricFamily(f"{self._prefix}:{name}", text, labels=self._names)
            summary.add_metric(self._values, stats.num_read_steps, seconds)
            yield summary

    def _durations(self) -> Iterator[Metric]:
        requests = self._requests
        for name, text, histogram in (
            (
                "time_to_first_token_seconds",
                "From arrival to the first token.",
                requests.time_to_first_token,
            ),
            (
                "inter_token_latency_seconds",
                "Between two deliveries of an output.",
                requests.inter_token_latency,
            ),
            (
                "request_time_per_output_token_seconds",
                "Mean of an output, after its first token.",
                requests.time_per_output_token,
            ),
            ("e2e_request_latency_seconds", "From arrival to the end.", requests.e2e_latency),
            ("request_queue_time_seconds", "Before it was first scheduled.", requests.queue_time),
            ("request_prefill_time_seconds", "Then, to its first token.", requests.prefill_time),
            ("request_decode_time_seconds", "Then, to its last token.", requests.decode_time),
        ):
            yield self._histogram(name, text, histogram)
        ended = self._family(
            CounterMetricFamily,
            "request_success",
            "Requests that ended, and why.",
            "finished_reason",
        )
        for reason, count in requests.num_finished.items():
            ended.add_metric([*self._values, str(reason)], count)
        yield ended

    def _server(self) -> Iterator[Metric]:
        for name, text, label, values in (
            (
                "startup_seconds",
                "Of each phase of the start.",
                "phase",
                self._model.server_facts.get("startup_seconds", {}),
            ),
            (
                "memory_budget_bytes",
                "Of a device's memory, by what it is for.",
                "kind",
                self._model.memory_budget,
            ),
        ):
            family = self._family(GaugeMetricFamily, name, text, label)
            for kind, value in values.items():
                family.add_metric([*self._values, kind], value)
            yield family

    def _family(self, kind: Callable[..., Family], name: str, text: str, *labels: str) -> Family:
        return kind(f"{self._prefix}:{name}", text, labels=[*self._names, *labels])

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = self._family(GaugeMetricFamily, name, text)
        family.add_metric(self._values, value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = self._family(CounterMetricFamily, name, text)
        family.add_metric(self._values, value)
        return family

    def _histogram(self, name: str, text: str, histogram: Histogram) -> Metric:
        family = self._family(HistogramMetricFamily, name, text)
        family.add_metric(self._values, histogram.buckets(), histogram.sum)
        return family
