"""Who may call: bearer tokens, whichever protocol they come by."""

import hmac
from collections.abc import Sequence
from pathlib import Path

from jaxinfer.errors import InvalidParameter


def read_tokens(path: Path) -> tuple[str, ...]:
    """The tokens of a file, one a line; empty lines and those that begin with ``#`` are none.

    Raises:
        InvalidParameter: there is none, or the file cannot be read.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidParameter(
            f"the file of tokens {str(path)!r} cannot be read: {error}"
        ) from error
    tokens = tuple(line for line in lines if line and not line.startswith("#"))
    if not tokens:
        raise InvalidParameter(f"the file of tokens {str(path)!r} holds none: write one a line")
    return tokens


class BearerTokens:
    """The tokens of which a call must name one."""

    def __init__(self, tokens: Sequence[str]):
        self._tokens = [token.encode() for token in tokens]

    def allow(self, given: str | bytes) -> bool:
        """Whether ``Bearer TOKEN`` names one of the tokens; takes as long for any wrong one."""
        kind, _, token = (given if isinstance(given, bytes) else given.encode()).partition(b" ")
        # All of them are compared, so that time does not tell which.
        matches = [hmac.compare_digest(token.strip(), each) for each in self._tokens]
        return kind.lower() == b"bearer" and any(matches)
