"""The prefix cache: what is found was put there, for these very tokens behind these very ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from jaxinfer.engine.prefix import PrefixIndex, longest_hit, next_key, root_key
from tests.engine.house import full_group, window_group

PAGE_SIZE = 2


def pages_of(tokens):
    """Key and bytes of each full page."""
    key, pages = root_key(""), []
    for begin in range(0, len(tokens) - PAGE_SIZE + 1, PAGE_SIZE):
        content = np.asarray(tokens[begin : begin + PAGE_SIZE], np.int32).tobytes()
        key = next_key(key, content)
        pages.append((key, content))
    return pages


class IndexMachine(RuleBasedStateMachine):
    """A dictionary from whole beginnings to pages is the plain twin."""

    def __init__(self):
        super().__init__()
        self.index = PrefixIndex()
        self.pages = {}
        self.next_page = 1

    @rule(tokens=st.lists(st.integers(0, 1), max_size=8))
    def publish(self, tokens):
        for number, (key, content) in enumerate(pages_of(tokens), start=1):
            beginning = tuple(tokens[: number * PAGE_SIZE])
            is_new = beginning not in self.pages
            assert self.index.insert(key, content, self.next_page) == is_new
            if is_new:
                self.pages[beginning] = self.next_page
                self.next_page += 1

    @precondition(lambda self: self.pages)
    @rule(data=st.data())
    def forget(self, data):
        beginning = data.draw(st.sampled_from(sorted(self.pages)))
        self.index.forget(self.pages.pop(beginning))

    @rule(tokens=st.lists(st.integers(0, 1), max_size=10))
    def find(self, tokens):
        found = [self.index.find(*page) for page in pages_of(tokens)]
        beginnings = [tuple(tokens[:end]) for end in range(PAGE_SIZE, len(tokens) + 1, PAGE_SIZE)]
        assert found == [self.pages.get(beginning) for beginning in beginnings]

    @invariant()
    def pages_are_known_once(self):
        assert self.index.pages == frozenset(self.pages.values())
        assert len(self.index) == len(self.pages)


TestIndexMachine = IndexMachine.TestCase
TestIndexMachine.settings = settings(max_examples=40, stateful_step_count=20)


def test_a_key_whose_tokens_differ_is_no_hit():
    index = PrefixIndex()
    index.insert(b"key", b"tokens", 1)
    assert index.find(b"key", b"others") is None
    assert index.find(b"key", b"tokens") == 1


def test_equal_tokens_behind_another_salt_have_another_key():
    assert next_key(root_key("a"), b"tokens") != next_key(root_key("b"), b"tokens")
    assert next_key(root_key("\ud800"), b"tokens") != next_key(root_key(""), b"tokens")


@settings(max_examples=300)
@given(
    windows=st.lists(st.none() | st.integers(1, 12), min_size=1, max_size=3),
    found=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), max_size=8),
    page_size=st.integers(1, 4),
)
def test_the_longest_hit_is_the_longest_for_which_every_group_has_what_is_still_seen(
    windows, found, page_size
):
    groups = [full_group() if w is None else window_group(w) for w in windows]
    pages = [[1 if row[g] else None for row in found] for g in range(len(groups))]

    def is_hit(num_pages):
        position = num_pages * page_size
        seen = [range(0 if w is None else max(0, position - w + 1), position) for w in windows]
        return all(pages[g][p // page_size] for g in range(len(groups)) for p in seen[g])

    expected = max(count for count in range(len(found) + 1) if is_hit(count))
    assert longest_hit(groups, pages, page_size) == expected


@pytest.mark.parametrize(("window", "first"), [(None, 0), (1, 2), (2, 2), (3, 1), (8, 0), (99, 0)])
def test_the_first_page_that_a_token_sees(window, first):
    group = full_group() if window is None else window_group(window)
    assert group.first_column(9, page_size=4) == first
