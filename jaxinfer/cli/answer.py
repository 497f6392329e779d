"""Shows one prompt's outputs as they come, and how long they took."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxinfer.cli.printing import note, print_json, write
from jaxinfer.cli.process_clock import process_started_at
from jaxinfer.errors import StepFailed

if TYPE_CHECKING:
    from jaxinfer.cli.remote import RemoteModel, RemoteStream
    from jaxinfer.llm import LLM, RequestStream
    from jaxinfer.outputs import RequestOutput


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds to the first token, from the start of the process and from submission.

    ``first_token_after_start``: None where a person took the time in between, too.
    ``tokens_per_second``: of all outputs, after the first token; None with fewer than two.
    ``startup``: seconds by phase.
    """

    first_token_after_start: float | None
    first_token_after_submission: float | None
    tokens_per_second: float | None
    startup: Mapping[str, float]

    def __str__(self) -> str:
        if self.first_token_after_submission is None:
            return "no token"
        waited = f"first token {self.first_token_after_submission:.3f} s after the prompt"
        if self.first_token_after_start is not None:
            waited += f", {self.first_token_after_start:.2f} s after the start"
        rate = f"; {self.tokens_per_second:,.1f} tokens/s" if self.tokens_per_second else ""
        return waited + rate


def show_answer(
    llm: "LLM | RemoteModel",
    stream: "RequestStream | RemoteStream",
    *,
    as_json: bool,
    since_start: bool = True,
) -> "RequestOutput":
    """Writes the text of a single prompt while it comes; JSON when all of it is there.

    ``since_start``: the process did nothing but this.
    An interrupt ends the output where it stands; ask ``is_aborted``.
    """
    is_live = not as_json and stream.num_outputs == 1
    with stream:
        try:
            for event in stream:
                if event.error is not None:
                    raise StepFailed(event.error)
                if is_live:
                    write(event.text)
        except KeyboardInterrupt:
            stream.close()
    [output] = stream.outputs
    timing = _timing(llm, output, since_start)
    if as_json:
        print_json({"output": output, "timing": timing})
        return output
    write("\n" if is_live else "".join(f"{sample.text}\n\n" for sample in output.outputs))
    note(str(timing))
    return output


def is_aborted(output: "RequestOutput") -> bool:
    """Whether an interrupt cut it short."""
    return any(sample.finish_reason == "abort" for sample in output.outputs)


def _timing(llm: "LLM | RemoteModel", output: "RequestOutput", since_start: bool) -> Timing:
    metrics = output.metrics
    if metrics is None or metrics.first_token_time is None or metrics.last_token_time is None:
        return Timing(
            first_token_after_start=None,
            first_token_after_submission=None,
            tokens_per_second=None,
            startup=llm.startup_seconds,
        )
    seconds = metrics.last_token_time - metrics.first_token_time
    num_later = sum(len(sample.token_ids) for sample in output.outputs) - 1
    return Timing(
        first_token_after_start=(
            metrics.first_token_time - process_started_at() if since_start else None
        ),
        first_token_after_submission=metrics.first_token_time - metrics.arrival_time,
        tokens_per_second=num_later / seconds if seconds > 0 else None,
        startup=llm.startup_seconds,
    )
