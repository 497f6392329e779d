"""What a soak saw: counts, times, and what should not have happened."""

import logging
from collections import Counter
from dataclasses import dataclass, field

_log = logging.getLogger(__name__)

#: So many of them are kept in words.
_MAX_VIOLATIONS = 100


@dataclass
class Record:
    """Grows while a soak runs.

    Attributes:
        calls: by kind of visitor and status.
        violations: what no server may do, in words.
        num_canaries: checks of the canaries that were as they should be.
        num_faults: failures, delays and hangs of the device that were caused.
        resident_bytes: of the process, once a second; empty for a server elsewhere.
        recovery_seconds: from the end of all trouble until everything was as at the start.
    """

    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    num_violations: int = 0
    num_tokens: int = 0
    num_canaries: int = 0
    num_faults: int = 0
    resident_bytes: list[int] = field(default_factory=list)
    recovery_seconds: float | None = None

    def violation(self, words: str) -> None:
        """Something that should not have happened."""
        _log.error("violation: %s", words)
        self.num_violations += 1
        if len(self.violations) < _MAX_VIOLATIONS:
            self.violations.append(words)

    def require(self, is_true: bool, words: str) -> None:
        """A violation unless it is true."""
        if not is_true:
            self.violation(words)

    def summary(self, seconds: float) -> dict:
        """Figures for people and programs, after so many seconds."""
        by_status: Counter[str] = Counter()
        for (_, status), count in self.calls.items():
            by_status[status] += count
        return {
            "seconds": round(seconds, 1),
            "calls": sum(self.calls.values()),
            "calls_by_status": dict(sorted(by_status.items())),
            "calls_by_visitor": {
                f"{visitor}: {status}": count
                for (visitor, status), count in sorted(self.calls.items())
            },
            "tokens": self.num_tokens,
            "canaries": self.num_canaries,
            "faults": self.num_faults,
            "recovery_seconds": self.recovery_seconds,
            "resident_mib": [round(size / 2**20) for size in self._quarters()],
            "num_violations": self.num_violations,
            "violations": self.violations,
        }

    def _quarters(self) -> list[int]:
        """Resident bytes at the start, after each quarter, and at the end."""
        if not self.resident_bytes:
            return []
        last = len(self.resident_bytes) - 1
        return [self.resident_bytes[last * quarter // 4] for quarter in range(5)]
