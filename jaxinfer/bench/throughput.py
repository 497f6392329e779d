"""Many requests at once: how many tokens a second, and what paging saves."""

import time
from dataclasses import replace
from typing import Any

from jaxinfer.bench.device import counted_compiles, peak_memory_bytes
from jaxinfer.bench.host_time import timed_host
from jaxinfer.bench.latencies import Objectives, drain, request_times, statistics
from jaxinfer.bench.rates import rates
from jaxinfer.bench.workload import Workload
from jaxinfer.engine.stats import EngineStats
from jaxinfer.llm import LLM


def measure_throughput(
    llm: LLM, workload: Workload, objectives: Objectives | None = None
) -> dict[str, Any]:
    """Submits the whole workload at once and runs it to its end.

    The keys are those of ``vllm bench``; a request's times count from the common submission, its
    time in the queue included, and requests that failed are not counted. Besides them:

    - ``kv_tokens_used``, ``kv_tokens_allocated``, ``kv_tokens_if_reserved``: tokens in the cache,
      room in the pages that were taken for them, and room that one stretch of ``max_model_len`` a
      sequence would have taken; means over steps, of the first layer group. Tokens that sequences
      share are used by each of them.
    - ``peak_memory_bytes``, ``compiles_after_ready``, ``preemptions``, ``steps``.
    - ``host_ms_per_decode_step``: time in which the host did not wait for the device.
    """
    before = replace(llm.engine.stats)
    with counted_compiles() as compiles, timed_host(llm.engine) as host:
        start = time.perf_counter()
        stream = llm.stream(workload.prompts, workload.sampling_params)
        arrivals = drain(stream)
        duration = time.perf_counter() - start
    outputs = stream.outputs
    times = [request_times(output, arrivals[output.request_id]) for output in outputs]
    completed = [entry for entry in times if entry is not None]
    counted = [output for output, entry in zip(outputs, times, strict=True) if entry is not None]
    report: dict[str, Any] = {
        "completed": len(completed),
        "failed": len(times) - len(completed),
    } | rates(
        num_requests=len(completed),
        num_inputs=sum(len(output.prompt_token_ids) for output in counted),
        num_outputs=sum(len(output.outputs[0].token_ids) for output in counted),
        duration=duration,
    )
    if objectives:
        good = sum(entry.meets(objectives) for entry in completed)
        report["request_goodput"] = good / duration
    return (
        report
        | statistics(completed)
        | _paging(before, llm.engine.stats)
        | {
            "peak_memory_bytes": peak_memory_bytes(),
            "compiles_after_ready": compiles.count,
            "host_ms_per_decode_step": host.milliseconds_per_step,
        }
    )


def _paging(before: EngineStats, after: EngineStats) -> dict[str, float]:
    """What this run added to counters that run as long as the engine lives."""

    def added(name: str) -> int:
        return getattr(after, name) - getattr(before, name)

    num_steps = added("num_steps")
    return {
        "steps": num_steps,
        "preemptions": added("num_preemptions"),
        "kv_tokens_used": added("cached_token_steps") / num_steps,
        "kv_tokens_allocated": added("paged_token_steps") / num_steps,
        "kv_tokens_if_reserved": added("contiguous_token_steps") / num_steps,
    }
