"""What streaming costs: a load goes to ``LLM`` and, over gRPC, to a server, by turns."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxinfer.bench.throughput import measure_throughput
from jaxinfer.bench.workload import Workload
from jaxinfer.errors import JaxInferError
from serve.load.sender import send

if TYPE_CHECKING:
    from jaxinfer.llm import LLM

#: Of the bootstrap.
_NUM_DRAWS = 10_000


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
        throughputs; ``ratio``, of their medians, for what slows a machine down for a while is no
        part of either side; ``ratio_low`` and ``ratio_high``, between which 95 % of such ratios are
        when the rounds are drawn again (a bootstrap).

    Raises:
        InvalidParameter, InvalidPrompt: the model takes no such load.
        JaxInferError: a request failed.
    """

    def offline(workload: Workload) -> float:
        return _throughput(measure_throughput(llm, workload))

    def streamed(workload: Workload) -> float:
        return _throughput(clients.submit(send, target, workload, max_concurrency).result())

    rounds: list[Round] = []
    for number, workload in enumerate(workloads):
        sides = (offline, streamed) if number % 2 == 0 else (streamed, offline)
        found = {side: side(workload) for side in sides}
        rounds.append(Round(offline=found[offline], streamed=found[streamed]))
        on_round(rounds[-1])
    return _report(rounds)


def _throughput(figures: dict[str, Any]) -> float:
    if figures["failed"]:
        errors = ", ".join(figures.get("errors", ())) or "see the log"
        raise JaxInferError(f"{figures['failed']} requests failed: {errors}")
    return figures["output_throughput"]


def _report(rounds: Sequence[Round]) -> dict[str, Any]:
    offline_R = np.array([each.offline for each in rounds])
    streamed_R = np.array([each.streamed for each in rounds])
    ratio = float(np.median(streamed_R) / np.median(offline_R))
    drawn_DR = np.random.default_rng(0).integers(len(rounds), size=(_NUM_DRAWS, len(rounds)))
    ratios_D = np.median(streamed_R[drawn_DR], axis=1) / np.median(offline_R[drawn_DR], axis=1)
    low, high = np.percentile(ratios_D, (2.5, 97.5))
    return {
        "num_rounds": len(rounds),
        "llm_output_throughput": float(np.median(offline_R)),
        "grpc_output_throughput": float(np.median(streamed_R)),
        "ratio": ratio,
        "ratio_low": float(low),
        "ratio_high": float(high),
        "llm_output_throughputs": [round(each.offline, 1) for each in rounds],
        "grpc_output_throughputs": [round(each.streamed, 1) for each in rounds],
    }
