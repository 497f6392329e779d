"""The prefix cache of one layer group: which page holds the K/V of which tokens.

A page is found by a key that stands for all tokens up to its end: the hash of the page's tokens
and of the key before it, the first of a salt. So equal tokens behind different beginnings, or
under different salts, never meet. A hit is verified: the tokens themselves are compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from jaxinfer.engine.limits import CacheGroup

_KEY_BYTES = 16


def root_key(salt: str) -> bytes:
    """The key before a sequence's first page."""
    return blake2b(salt.encode("utf-8", "surrogatepass"), digest_size=_KEY_BYTES).digest()


def next_key(key: bytes, tokens: bytes) -> bytes:
    """The key of the page that holds ``tokens`` (int32) and follows the page of ``key``."""
    return blake2b(key + tokens, digest_size=_KEY_BYTES).digest()


@dataclass(frozen=True)
class _Entry:
    page: int
    tokens: bytes


class PrefixIndex:
    """Pages by key. It owns none: the pool tells it when one is given away."""

    def __init__(self) -> None:
        self._entries: dict[bytes, _Entry] = {}
        self._keys: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: bytes, tokens: bytes) -> int | None:
        """The page with this key, if it holds these tokens."""
        entry = self._entries.get(key)
        return entry.page if entry is not None and entry.tokens == tokens else None

    def insert(self, key: bytes, tokens: bytes, page: int) -> bool:
        """Makes a page known; False when another holds the same already, or the page is known."""
        if key in self._entries or page in self._keys:
            return False
        self._entries[key] = _Entry(page, tokens)
        self._keys[page] = key
        return True

    def forget(self, page: int) -> None:
        """The page's content is about to be overwritten."""
        del self._entries[self._keys.pop(page)]

    def clear(self) -> None:
        self._entries.clear()
        self._keys.clear()

    @property
    def pages(self) -> frozenset[int]:
        return frozenset(self._keys)


def longest_hit(
    groups: Sequence[CacheGroup], pages_by_group: Sequence[Sequence[int | None]], page_size: int
) -> int:
    """How many leading pages of a sequence every group can serve.

    ``pages_by_group``: for each group the page found for each column, or None. A full group must
    have all pages of the hit; a window group those of the last window before its end.
    """
    num_pages = min(map(len, pages_by_group))
    while num_pages > 0:
        missing = [
            _last_missing(pages, group.first_column(num_pages * page_size, page_size), num_pages)
            for group, pages in zip(groups, pages_by_group, strict=True)
        ]
        if all(column is None for column in missing):
            return num_pages
        # A hit that ends later than a missing page needs that page, or was refused before.
        num_pages = min(column for column in missing if column is not None)
    return 0


def _last_missing(pages: Sequence[int | None], begin: int, end: int) -> int | None:
    return next((c for c in reversed(range(begin, end)) if pages[c] is None), None)
