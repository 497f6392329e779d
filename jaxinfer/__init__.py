"""jaxinfer: a complete LLM inference stack in JAX.

    from jaxinfer import LLM, SamplingParams

    with LLM("smollm2-135m") as llm:
        [answer] = llm.generate(["The capital of France is"], SamplingParams(max_tokens=16))
    print(answer.outputs[0].text)

To read the code, start with ``jaxinfer/generate.py``. The public names below load on first use, so
that ``import jaxinfer`` costs nothing and touches no device.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from jaxinfer import errors

if TYPE_CHECKING:
    from jaxinfer.llm import LLM as LLM
    from jaxinfer.outputs import CompletionOutput as CompletionOutput
    from jaxinfer.outputs import Logprob as Logprob
    from jaxinfer.outputs import RequestOutput as RequestOutput
    from jaxinfer.sampling_params import SamplingParams as SamplingParams
    from jaxinfer.structured_outputs import StructuredOutputsParams as StructuredOutputsParams

__version__ = "0.1.0"

_HOMES = {
    "LLM": "jaxinfer.llm",
    "SamplingParams": "jaxinfer.sampling_params",
    "StructuredOutputsParams": "jaxinfer.structured_outputs",
    "RequestOutput": "jaxinfer.outputs",
    "CompletionOutput": "jaxinfer.outputs",
    "Logprob": "jaxinfer.outputs",
}

__all__ = [
    "LLM",
    "CompletionOutput",
    "Logprob",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputsParams",
    "__version__",
    "errors",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(
            f"module 'jaxinfer' has no attribute {name!r}; it has {', '.join(__all__)}"
        )
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
