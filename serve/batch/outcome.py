"""How a run went, for people and for programs."""

import signal
from dataclasses import dataclass, field
from typing import Any

from jaxinfer.bench.rates import rates
from serve.batch.run import Progress
from serve.batch.sink import Results


@dataclass(kw_only=True)
class Outcome:
    """What is done of a file of requests.

    Attributes:
        total: lines of the file.
        results: of this run and of those before it.
        progress, seconds: of this run.
        stopped_by: what has ended it before its time.
    """

    total: int
    results: Results
    progress: Progress = field(default_factory=Progress)
    seconds: float = 0.0
    stopped_by: Exception | signal.Signals | None = None

    @property
    def num_remaining(self) -> int:
        """Lines that have no result."""
        return self.total - len(self.results.done)

    @property
    def figures(self) -> dict[str, Any]:
        """``total``, ``completed``, ``failed``, as the OpenAI API counts, and ``remaining`` are the
        file's; the others are this run's, by the names of ``vllm bench``."""
        progress = self.progress
        return {
            "total": self.total,
            "completed": len(self.results.done) - self.results.num_failed,
            "failed": self.results.num_failed,
            "remaining": self.num_remaining,
            "stopped_by": self._cause,
            "num_requests": progress.num_done,
        } | rates(
            num_requests=progress.num_done,
            num_inputs=progress.num_prompt_tokens,
            num_outputs=progress.num_completion_tokens,
            duration=self.seconds,
        )

    @property
    def _cause(self) -> str | None:
        if isinstance(self.stopped_by, signal.Signals):
            return self.stopped_by.name if self.num_remaining else None
        return None if self.stopped_by is None else str(self.stopped_by)

    def __str__(self) -> str:
        words = f"{self.results.name}: {len(self.results.done)} of {self.total} done"
        if self.results.num_failed:
            words += f", {self.results.num_failed} of them with an error"
        if not self.seconds:
            return words
        progress = self.progress
        return (
            f"{words}; {progress.num_done} in {self.seconds:.1f} s: {progress.num_prompt_tokens} "
            f"tokens in, {progress.num_completion_tokens} out, "
            f"{progress.num_completion_tokens / self.seconds:.1f} a second"
        )
