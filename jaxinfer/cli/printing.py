"""Results on standard output, everything else on standard error."""

import dataclasses
import io
import json
import math
import sys
from collections.abc import Mapping
from typing import Any


def write_utf8() -> None:
    """Makes standard output UTF-8, whatever the locale says: models write any language.

    What no encoding has, half of a surrogate pair, is escaped as JSON does it.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")


def print_json(document: Any) -> None:
    """One JSON document on one line of standard output; dataclasses are objects."""
    print(json.dumps(_plain(document), ensure_ascii=False, allow_nan=False), flush=True)


def show(report: Mapping[str, Any], *, as_json: bool) -> int:
    """Figures by name for people, unless they want JSON alone, and as one line of JSON. 0."""
    if not as_json:
        for name, value in report.items():
            print(f"{name:<26}{value:,.4g}" if isinstance(value, float) else f"{name:<26}{value}")
        sys.stdout.flush()
    print_json(report)
    return 0


def note(message: str) -> None:
    """One line for the person at the terminal."""
    print(message, file=sys.stderr, flush=True)


def write(text: str) -> None:
    """A piece of a result, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def gibibytes(nbytes: float) -> str:
    """Bytes for people to read."""
    return f"{nbytes / 2**30:,.2f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:,.1f} MiB"


def _plain(value: Any) -> Any:
    """The value as JSON knows it; it has no number that is not finite."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = (field.name for field in dataclasses.fields(value))
        return {name: _plain(getattr(value, name)) for name in fields}
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
