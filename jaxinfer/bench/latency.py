"""One batch of requests, alone on the machine: how long, and how near to the machine's limits.

A decode step must read every weight that it multiplies by, and the keys and values of every token
in the cache. What the memory could deliver is measured by copying; the ratio of the two is how much
of the machine a step uses. A prefill must compute; on an accelerator that is held against what a
large product reaches.
"""

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

import jax.numpy as jnp

from jaxinfer.bench.flops import prefill_flops
from jaxinfer.bench.latencies import drain, request_times, statistics
from jaxinfer.bench.workload import random_workload
from jaxinfer.cache import layer_groups, layer_page_bytes
from jaxinfer.errors import InvalidParameter
from jaxinfer.llm import LLM
from jaxinfer.outputs import RequestOutput
from pallas_kernels.limits import copy_bandwidth, is_accelerator, product_rate


def measure_latency(
    llm: LLM, *, batch_size: int, input_len: int, output_len: int, num_iters: int
) -> dict[str, Any]:
    """Times ``num_iters`` batches of random prompts, after one that does not count.

    Medians over the batches: ``ttft_ms`` to the last request's first token, ``tpot_ms`` of a decode
    step, ``prefill_throughput`` and ``decode_throughput`` in tokens a second. ``statistics`` of the
    single requests stand beside them. ``fraction_of_limit``: bytes that a decode step must read, in
    ``tpot_ms``, over what copying achieves. On an accelerator, ``prefill_fraction_of_limit``: FLOPs
    that the prompts take (``prefill_flops``), in ``ttft_ms``, over what a large product in the
    model's dtype achieves: its MFU.

    Raises:
        InvalidParameter: no second token to time, or no batch.
    """
    if output_len < 2 or num_iters < 1:
        raise InvalidParameter(
            f"output_len = {output_len} must be at least 2, num_iters = {num_iters} at least 1"
        )
    batches, times = [], []
    for iteration in range(num_iters + 1):
        workload = random_workload(
            batch_size,
            input_len=input_len,
            output_len=output_len,
            vocab_size=llm.config.vocab_size,
            seed=iteration,
        )
        stream = llm.stream(workload.prompts, workload.sampling_params)
        arrivals = drain(stream)
        if iteration > 0:
            batches.append(_batch_times(stream.outputs))
            found = [request_times(each, arrivals[each.request_id]) for each in stream.outputs]
            times += [entry for entry in found if entry is not None]
    prefill, decode = (median(part) for part in zip(*batches, strict=True))
    report: dict[str, Any] = {
        "batch_size": batch_size,
        "input_len": input_len,
        "output_len": output_len,
        "num_iters": num_iters,
        "ttft_ms": 1e3 * prefill,
        "tpot_ms": 1e3 * decode / (output_len - 1),
        "prefill_throughput": batch_size * input_len / prefill,
        "decode_throughput": batch_size * (output_len - 1) / decode,
    }
    return report | _limit(llm, report) | _prefill_limit(llm, report) | statistics(times)


def _batch_times(outputs: Sequence[RequestOutput]) -> tuple[float, float]:
    """Seconds to the last first token, and from there to the end."""
    metrics = [output.metrics for output in outputs if output.metrics is not None]
    begin = min(entry.arrival_time for entry in metrics)
    first = max(entry.first_token_time or math.nan for entry in metrics)
    end = max(entry.last_token_time or math.nan for entry in metrics)
    return first - begin, end - first


def _limit(llm: LLM, report: dict[str, Any]) -> dict[str, Any]:
    context = report["input_len"] + report["output_len"] / 2
    weights = _multiplied_bytes(llm)
    cached = report["batch_size"] * _cached_bytes(llm, context)
    bandwidth = copy_bandwidth()
    return {
        "weight_bytes_per_step": weights,
        "kv_bytes_per_step": round(cached),
        "copy_bandwidth": bandwidth,
        "fraction_of_limit": (weights + cached) / (1e-3 * report["tpot_ms"]) / bandwidth,
    }


def _prefill_limit(llm: LLM, report: dict[str, Any]) -> dict[str, Any]:
    """Of accelerators: a CPU's float32 product is no limit for what it multiplies in bfloat16."""
    if not is_accelerator():
        return {}
    sizes = {name: report[name] for name in ("batch_size", "input_len")}
    flops = prefill_flops(llm.config, llm.num_active_params, **sizes)
    rate = product_rate(llm.dtype) * llm.mesh.size
    return {
        "prefill_flops": flops,
        "product_rate": rate,
        "prefill_fraction_of_limit": flops / (1e-3 * report["ttft_ms"]) / rate,
    }


def _multiplied_bytes(llm: LLM) -> int:
    """All weights once, but for tables of which a step reads single rows."""
    config, rows = llm.config, 0
    if not config.tied_head:
        rows += config.vocab_size * config.width
    if config.layer_input is not None:
        rows += config.layer_input.vocab_size * config.layer_input.width * len(config.layers)
    return llm.weight_bytes - rows * jnp.dtype(llm.dtype).itemsize


def _cached_bytes(llm: LLM, context: float) -> float:
    """Keys and values of one sequence, as far back as each layer looks, its own or another's."""
    config = llm.config
    sizes = layer_page_bytes(config, 1, llm.kv_cache_dtype)
    return sum(
        sizes[config.kv_owner(layer)]
        * (context if group.window is None else min(context, group.window))
        for group in layer_groups(config)
        for layer in group.layers
    )
