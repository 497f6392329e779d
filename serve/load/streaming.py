"""What streaming costs: a load goes to ``LLM`` and, over gRPC, to a server, by turns."""

import math
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxinfer.bench.throughput import measure_throughput
from jaxinfer.bench.workload import Workload
from jaxinfer.errors import JaxInferError
from jaxinfer.sampling_params import SamplingParams
from serve.load.sender import send

if TYPE_CHECKING:
    from jaxinfer.llm import LLM


@dataclass(frozen=True, kw_only=True)
class Round:
    """Output tokens a second of one load, from ``LLM`` and from a server's streams."""

    offline: float
    streamed: float

    @property
    def ratio(self) -> float:
        """What is left of the throughput."""
        return self.streamed / self.offline


def measure_streaming(
    llm: "LLM",
    target: str,
    workloads: Sequence[Workload],
    clients: Executor,
    *,
    max_concurrency: int,
    on_round: Callable[[Round], None] = lambda _: None,
) -> dict[str, Any]:
    """One round a workload, the other side first each time, because machines slow down for a while.

    Args:
        target: ``HOST:PORT`` of a server of the same model on the same machine, that has nothing
            else to do.
        clients: processes, of which one sends the load. What it computes counts, for it shares the
            machine; so it is to be as the clients are that others write.
        max_concurrency: streams at once.

    Returns:
        throughputs, and the ``median_`` ones with their ``ratio``, which a few slow rounds move
        little; ``mean_ratio`` of the rounds, and its ``standard_error`` as if they were independent
        (slow times of a machine last longer than a round), None of a single one.

    Raises:
        InvalidParameter, InvalidPrompt: the model takes no such load.
        JaxInferError: a request failed.
    """

    def offline(workload: Workload) -> float:
        llm.generate(workload.prompts[:1], opening, use_tqdm=False)
        return _throughput(measure_throughput(llm, workload))

    def streamed(workload: Workload) -> float:
        return _throughput(clients.submit(send, target, workload, max_concurrency).result())

    opening = SamplingParams(temperature=0, max_tokens=1)  # as the client's, before its clock
    rounds: list[Round] = []
    for number, workload in enumerate(workloads):
        sides = (offline, streamed) if number % 2 == 0 else (streamed, offline)
        found = {side: side(workload) for side in sides}
        rounds.append(Round(offline=found[offline], streamed=found[streamed]))
        on_round(rounds[-1])
    return _report(rounds)


def _throughput(figures: dict[str, Any]) -> float:
    if figures["failed"]:
        errors = ", ".join(figures.get("errors", ())) or "LLM does not say why"
        raise JaxInferError(f"{figures['failed']} requests failed: {errors}")
    return figures["output_throughput"]


def _report(rounds: Sequence[Round]) -> dict[str, Any]:
    offline = [each.offline for each in rounds]
    streamed = [each.streamed for each in rounds]
    ratios = [each.ratio for each in rounds]
    error = None if len(rounds) < 2 else statistics.stdev(ratios) / math.sqrt(len(rounds))
    return {
        "rounds": len(rounds),
        "median_llm_throughput": statistics.median(offline),
        "median_grpc_throughput": statistics.median(streamed),
        "ratio": statistics.median(streamed) / statistics.median(offline),
        "mean_ratio": statistics.mean(ratios),
        "standard_error": error,
        "llm_output_throughputs": [round(throughput, 1) for throughput in offline],
        "grpc_output_throughputs": [round(throughput, 1) for throughput in streamed],
    }
