"""The page tables of the running sequences, over the pools of all layer groups.

A sequence's pages of one group, page size 4, 14 tokens computed, window 6:

    full     [ 7 ][ 3 ][ 9 ][ 12 ]      every page from the first
    window   [ 0 ][ 0 ][ 5 ][ 2  ]      0: fell out of the window, given back

Every group is asked before anything is taken from one.
"""

from collections import Counter
from collections.abc import Iterable
from collections.abc import Sequence as Items

from jaxinfer.engine.limits import CacheGroup
from jaxinfer.engine.pages import PagePool
from jaxinfer.engine.prefix import PrefixIndex, longest_hit
from jaxinfer.engine.sequence import Sequence
from jaxinfer.engine.step import PageCopy, PlanDraft


class PageTables:
    """Gives pages to sequences and takes them back."""

    def __init__(self, groups: Items[CacheGroup], page_size: int):
        self.groups = tuple(groups)
        self.page_size = page_size
        self._group_ids = range(len(self.groups))
        self.clear()

    def clear(self) -> None:
        """All pages are free; nothing is cached. The tables of sequences must be empty."""
        self.indexes = tuple(PrefixIndex() for _ in self.groups)
        self.pools = tuple(
            PagePool(group.num_pages, on_evict=index.forget)
            for group, index in zip(self.groups, self.indexes, strict=True)
        )

    def forget_prefixes(self) -> None:
        """Nothing that is cached now will be found again."""
        for pool, index in zip(self.pools, self.indexes, strict=True):
            pool.keep_nothing()
            index.clear()

    @property
    def num_free(self) -> list[int]:
        """Free pages by group."""
        return [pool.num_free for pool in self.pools]

    # What a sequence takes.

    def cached_pages(self, sequence: Sequence) -> list[list[int | None]]:
        """By group, the cached pages of as many columns as a prefix hit can have."""
        found: list[list[int | None]] = [[] for _ in self.groups]
        for column in range((len(sequence.tokens) - 1) // self.page_size):
            key = sequence.page_key(column, self.page_size)
            pages = [index.find(*key) for index in self.indexes]
            if any(self._misses(group, page) for group, page in enumerate(pages)):
                break
            for column_of_group, page in zip(found, pages, strict=True):
                column_of_group.append(page)
        num_pages = longest_hit(self.groups, found, self.page_size)
        return [pages[:num_pages] for pages in found]

    def num_tokens(self, cached_pages: Items[Items[int | None]]) -> int:
        """How many tokens ``cached_pages`` hold; those of no group hold none."""
        return len(cached_pages[0]) * self.page_size if cached_pages else 0

    def attach(self, sequence: Sequence, cached_pages: Items[Items[int | None]]) -> None:
        """Shares pages that hold the sequence's first tokens."""
        self._share(sequence, cached_pages, self.num_tokens(cached_pages))

    def can_fork(self, source: Sequence, num_tokens: int) -> bool:
        """Whether ``source`` still has all that a copy of its first tokens would see."""
        return all(
            all(table[self._first_column(group, num_tokens) : self._num_pages(num_tokens)])
            for group, table in enumerate(source.pages)
        )

    def fork(self, source: Sequence, sequence: Sequence, num_tokens: int) -> None:
        """Shares the pages of the first tokens of ``source``, the partly filled last one too."""
        num_pages = self._num_pages(num_tokens)
        self._share(sequence, [table[:num_pages] for table in source.pages], num_tokens)

    def num_missing(self, group: int, sequence: Sequence, end: int) -> int:
        """Pages to take from a group's pool before tokens up to ``end`` can be written."""
        missing = self._num_pages(end) - len(sequence.pages[group])
        return max(0, missing) + self._must_copy(group, sequence)

    def can_extend(self, ends: Iterable[tuple[Sequence, int]]) -> bool:
        """Whether there are pages for all these sequences to grow to these ends."""
        ends = tuple(ends)
        return all(
            pool.can_allocate(sum(self.num_missing(group, *end) for end in ends))
            for group, pool in enumerate(self.pools)
        )

    def can_prefill(self, sequences: Items[Sequence]) -> bool:
        """Whether these prompts, all but the last under way, can be computed side by side.

        A window group gives pages back on the way: there the last one needs enough to begin.
        """
        *_, last = sequences
        return all(
            pool.can_allocate(
                sum(self.num_missing(g, s, s.prefill_len) for s in sequences)
                if group.window is None
                else self.num_missing(g, last, last.num_computed + 1)
            )
            for g, (group, pool) in enumerate(zip(self.groups, self.pools, strict=True))
        )

    def reach(self, sequence: Sequence) -> int:
        """How far the sequence could grow with all the pages that are free."""
        return self.page_size * min(
            len(table) + pool.num_free - self._must_copy(group, sequence)
            for group, (table, pool) in enumerate(zip(sequence.pages, self.pools, strict=True))
        )

    def extend(self, sequence: Sequence, end: int, draft: PlanDraft) -> bool:
        """Pages for tokens ``num_computed`` to ``end``, all of them its own; False: not enough."""
        missing = [self.num_missing(group, sequence, end) for group in self._group_ids]
        if not any(missing):
            return True
        if not all(map(PagePool.can_allocate, self.pools, missing)):
            return False
        for group in self._group_ids:
            if self._must_copy(group, sequence):
                self._copy_last(group, sequence, draft)
            for _ in range(self._num_pages(end) - len(sequence.pages[group])):
                [page] = self.pools[group].allocate(1)
                sequence.pages[group].append(page)
                self._show_last(group, sequence, draft)
        return True

    def show(self, sequence: Sequence, draft: PlanDraft) -> None:
        """Tells an admitted sequence's slot the pages that it has from the start."""
        assert sequence.slot is not None
        for group, table in enumerate(sequence.pages):
            for column, page in enumerate(table):
                if page:
                    draft.set_page(group, sequence.slot.index, column, page)

    # What a sequence leaves.

    def publish(self, sequence: Sequence) -> None:
        """The sequence's full pages of committed tokens can be found by others from now on."""
        num_full = sequence.num_committed // self.page_size
        for column in range(sequence.num_published, num_full):
            key, tokens = sequence.page_key(column, self.page_size)
            for table, pool, index in zip(sequence.pages, self.pools, self.indexes, strict=True):
                page = table[column]
                if page and index.insert(key, tokens, page):
                    pool.keep(page)
        sequence.num_published = num_full

    def trim(self, sequence: Sequence, draft: PlanDraft) -> None:
        """Gives back pages that no token after the committed ones will see."""
        assert sequence.slot is not None
        for group, table in enumerate(sequence.pages):
            column = self._first_column(group, sequence.num_committed)
            # Backwards from the window's edge: what lies before the last one given back is gone.
            while column > 0 and table[column - 1]:
                column -= 1
                self.pools[group].release(table[column])
                table[column] = 0
                draft.set_page(group, sequence.slot.index, column, 0)

    def release(self, sequence: Sequence) -> None:
        """Gives back everything; a sequence's last pages are the first to be evicted."""
        for table, pool in zip(sequence.pages, self.pools, strict=True):
            for page in filter(None, reversed(table)):
                pool.release(page)
            table.clear()

    def check(self, sequences: Iterable[Sequence]) -> None:
        """The pools agree with the tables of these sequences, and with the prefix caches."""
        sequences = tuple(sequences)
        for group, (pool, index) in enumerate(zip(self.pools, self.indexes, strict=True)):
            pool.check(Counter(page for s in sequences for page in s.pages[group] if page))
            assert index.pages == pool.kept_pages, (index.pages, pool.kept_pages)

    def _share(
        self, sequence: Sequence, pages_by_group: Items[Items[int | None]], num_tokens: int
    ) -> None:
        """Only pages that the token after the first ``num_tokens`` still sees."""
        for group, pages in enumerate(pages_by_group):
            first = self._first_column(group, num_tokens)
            for column, page in enumerate(pages):
                if column < first:
                    page = 0
                assert page is not None
                if page:
                    self.pools[group].share(page)
                sequence.pages[group].append(page)
        sequence.num_computed = num_tokens

    def _misses(self, group: int, page: int | None) -> bool:
        """No hit can go beyond a page that a full group lacks."""
        return page is None and self.groups[group].window is None

    def _must_copy(self, group: int, sequence: Sequence) -> bool:
        """The next token goes into the last page, partly filled, and others read that too."""
        if sequence.num_computed % self.page_size == 0:
            return False
        return self.pools[group].is_shared(sequence.pages[group][-1])

    def _copy_last(self, group: int, sequence: Sequence, draft: PlanDraft) -> None:
        """Copy-on-write."""
        table, pool = sequence.pages[group], self.pools[group]
        shared = table[-1]
        [table[-1]] = pool.allocate(1)
        pool.release(shared)
        draft.copies.append(PageCopy(group=group, source=shared, target=table[-1]))
        self._show_last(group, sequence, draft)

    def _show_last(self, group: int, sequence: Sequence, draft: PlanDraft) -> None:
        assert sequence.slot is not None
        table = sequence.pages[group]
        draft.set_page(group, sequence.slot.index, len(table) - 1, table[-1])

    def _num_pages(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_size)

    def _first_column(self, group: int, position: int) -> int:
        return self.groups[group].first_column(position, self.page_size)
