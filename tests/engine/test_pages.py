"""The page pool: whoever asks first gets pages, nobody gets another's."""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from jaxinfer.engine.pages import PagePool

NUM_PAGES = 7


class PoolMachine(RuleBasedStateMachine):
    """Users take, share, keep and give back pages; a plain counter says who has what."""

    def __init__(self):
        super().__init__()
        self.evicted = []
        self.pool = PagePool(NUM_PAGES, on_evict=self.evicted.append)
        self.users = Counter()
        self.kept = set()
        self.cached = []  # least recently used first

    @rule(count=st.integers(0, NUM_PAGES))
    def allocate(self, count):
        free = NUM_PAGES - 1 - len(self.users)
        assert self.pool.can_allocate(count) == (count <= free)
        if count > free:
            return
        evicted = self.cached[: max(0, count - (free - len(self.cached)))]
        self.evicted.clear()
        pages = self.pool.allocate(count)
        assert len(set(pages)) == count
        assert not set(pages) & set(self.users)
        assert self.evicted == evicted
        self.cached = self.cached[len(evicted) :]
        self.kept -= set(evicted)
        self.users.update(pages)

    @precondition(lambda self: self.users)
    @rule(data=st.data())
    def share(self, data):
        page = data.draw(st.sampled_from(sorted({*self.users, *self.cached})))
        self.pool.share(page)
        self.users[page] += 1
        self.cached = [cached for cached in self.cached if cached != page]

    @precondition(lambda self: self.users)
    @rule(data=st.data())
    def keep(self, data):
        page = data.draw(st.sampled_from(sorted(self.users)))
        self.pool.keep(page)
        self.kept.add(page)

    @precondition(lambda self: self.users)
    @rule(data=st.data())
    def release(self, data):
        page = data.draw(st.sampled_from(sorted(self.users)))
        self.pool.release(page)
        self.users[page] -= 1
        self.users += Counter()
        if page in self.kept and page not in self.users:
            self.cached.append(page)

    @rule()
    def keep_nothing(self):
        self.pool.keep_nothing()
        self.kept.clear()
        self.cached.clear()

    @invariant()
    def books_agree(self):
        self.pool.check(self.users)
        assert self.pool.num_used == len(self.users)
        assert self.pool.kept_pages == self.kept
        assert {page for page in self.users if self.pool.is_shared(page)} == {
            page for page, count in self.users.items() if count > 1
        }

    def teardown(self):
        for page in list(self.users.elements()):
            self.pool.release(page)
        assert self.pool.num_free == NUM_PAGES - 1


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=50, stateful_step_count=30)


def test_page_0_is_never_given_away():
    pool = PagePool(5)
    assert sorted(pool.allocate(4)) == [1, 2, 3, 4]
    assert not pool.can_allocate(1)


def test_more_pages_than_there_are_is_a_bug_of_the_caller():
    with pytest.raises(AssertionError, match="3 pages of 2"):
        PagePool(3).allocate(3)


def test_releasing_or_sharing_a_free_page_is_a_bug_of_the_caller():
    pool = PagePool(3)
    with pytest.raises(AssertionError, match="page 1 has no user"):
        pool.release(1)
    with pytest.raises(AssertionError, match="page 1 is free"):
        pool.share(1)


def test_a_check_finds_a_page_that_nobody_counts():
    pool = PagePool(3)
    pool.allocate(1)
    with pytest.raises(AssertionError):
        pool.check(Counter())
