"""The page pool of one layer group: who may write where, and what is worth keeping.

Every page but 0 is in one of three states:

    free     nobody uses it, nothing of worth in it
    in use   as many users as its reference count says
    cached   nobody uses it, but its tokens may come again: taken last, least recently used first
"""

from collections import Counter, OrderedDict
from collections.abc import Callable


def _forget_nothing(page: int) -> None:
    """For pools whose cached pages nobody looks up."""


class PagePool:
    """Pages 1 to ``num_pages - 1``. ``on_evict(page)``: a cached page is about to be given away."""

    def __init__(self, num_pages: int, on_evict: Callable[[int], None] = _forget_nothing):
        self.num_pages = num_pages
        self._on_evict = on_evict
        self._free = list(reversed(range(1, num_pages)))
        self._users = [0] * num_pages
        self._kept: set[int] = set()
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def num_free(self) -> int:
        """Pages that ``allocate`` can give away, cached ones included."""
        return len(self._free) + len(self._cached)

    @property
    def num_used(self) -> int:
        return self.num_pages - 1 - self.num_free

    @property
    def unused_pages(self) -> tuple[int, ...]:
        """Pages whose content is of no worth to anybody."""
        return tuple(self._free)

    @property
    def kept_pages(self) -> frozenset[int]:
        """Pages that are cached, or will be after their last user."""
        return frozenset(self._kept)

    def can_allocate(self, num_pages: int) -> bool:
        return num_pages <= self.num_free

    def allocate(self, num_pages: int) -> list[int]:
        """Pages with one user each; ask ``can_allocate`` first."""
        assert self.can_allocate(num_pages), f"{num_pages} pages of {self.num_free}"
        while len(self._free) < num_pages:
            self._evict()
        pages = [self._free.pop() for _ in range(num_pages)]
        for page in pages:
            self._users[page] = 1
        return pages

    def share(self, page: int) -> None:
        """One more user of a page that is in use or cached."""
        assert self._users[page] or page in self._cached, f"page {page} is free"
        self._cached.pop(page, None)
        self._users[page] += 1

    def release(self, page: int) -> None:
        """One user fewer; after the last one the page is cached if it was to be kept, else free."""
        assert self._users[page] > 0, f"page {page} has no user"
        self._users[page] -= 1
        if self._users[page]:
            return
        if page in self._kept:
            self._cached[page] = None
        else:
            self._free.append(page)

    def is_shared(self, page: int) -> bool:
        return self._users[page] > 1

    def keep(self, page: int) -> None:
        """The page, now in use, is worth keeping after its last user."""
        assert self._users[page] > 0, f"page {page} has no user"
        self._kept.add(page)

    def keep_nothing(self) -> None:
        """Cached pages become free, and pages in use will after their last user."""
        self._kept.clear()
        self._free.extend(self._cached)
        self._cached.clear()

    def check(self, users: Counter[int]) -> None:
        """Free, cached and in use make the whole; reference counts equal the users given."""
        used = {page for page, count in enumerate(self._users) if count}
        assert {page: self._users[page] for page in used} == dict(users), (self._users, users)
        pages = sorted([*self._free, *self._cached, *used])
        assert pages == list(range(1, self.num_pages)), pages
        assert set(self._cached) == self._kept - used, (self._cached, self._kept, used)

    def _evict(self) -> None:
        page, _ = self._cached.popitem(last=False)
        self._kept.remove(page)
        self._on_evict(page)
        self._free.append(page)
