"""How much was done, and how much of it a second, under the names that ``vllm bench`` uses."""

from typing import Any


def rates(
    *, num_requests: int, num_inputs: int, num_outputs: int, duration: float
) -> dict[str, Any]:
    """``duration``, ``total_input_tokens`` and ``total_output_tokens``, and a second
    ``request_throughput``, ``output_throughput`` and ``total_token_throughput``.

    Args:
        num_requests: those that are counted, to whom the tokens belong.
        duration: seconds; where it is 0 the throughputs are None.
    """

    def a_second(number: int) -> float | None:
        return number / duration if duration else None

    return {
        "duration": duration,
        "total_input_tokens": num_inputs,
        "total_output_tokens": num_outputs,
        "request_throughput": a_second(num_requests),
        "output_throughput": a_second(num_outputs),
        "total_token_throughput": a_second(num_inputs + num_outputs),
    }
