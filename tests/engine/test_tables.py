"""Page tables: what a sequence takes, shares and leaves."""

import pytest

from jaxinfer.engine.request import Request
from jaxinfer.engine.sequence import Family, Sequence
from jaxinfer.engine.slots import Slot
from jaxinfer.engine.step import PageCopy, PlanDraft
from jaxinfer.engine.tables import PageTables
from tests.engine.house import full_group, window_group

PAGE_SIZE = 4


def sequences(prompt, num_groups, n=1) -> list[Sequence]:
    family = Family(
        Request(request_id="r", prompt_token_ids=prompt),
        arrival=0,
        samplings=[None] * n,
        max_tokens=8,
        num_groups=num_groups,
    )
    for index, sequence in enumerate(family.sequences):
        sequence.slot = Slot(index, index)
    return family.sequences


def draft():
    return PlanDraft(1, {})


def test_every_group_is_asked_before_anything_is_taken():
    tables = PageTables([full_group(9), window_group(8, num_pages=3)], PAGE_SIZE)
    [sequence] = sequences([1] * 20, num_groups=2)
    assert not tables.extend(sequence, 9, draft())
    assert tables.num_free == [8, 2]
    assert tables.extend(sequence, 8, draft())
    assert tables.num_free == [6, 0]


@pytest.mark.parametrize("num_pages", [3, 4, 5, 6])
def test_a_sequence_can_grow_as_far_as_it_reaches_and_no_farther(num_pages):
    tables = PageTables([full_group(num_pages)], PAGE_SIZE)
    source, copy = sequences([1] * 40, num_groups=1, n=2)
    assert tables.extend(source, 6, draft())
    tables.fork(source, copy, 6)
    reach = tables.reach(copy)
    assert not tables.extend(copy, reach + 1, draft())
    if reach > copy.num_computed:
        assert tables.extend(copy, reach, draft())
    tables.check([source, copy])


def test_a_shared_page_that_is_partly_filled_is_copied_by_whoever_writes_first():
    tables = PageTables([full_group()], PAGE_SIZE)
    source, copy = sequences([1] * 8, num_groups=1, n=2)
    tables.extend(source, 6, draft())
    tables.fork(source, copy, 6)
    assert copy.pages == source.pages
    source.num_computed = 6
    for writer, copies in ((source, 1), (copy, 0)):
        written = draft()
        shared = writer.pages[0][-1]
        assert tables.extend(writer, 7, written)
        expected = [PageCopy(group=0, source=shared, target=writer.pages[0][-1])]
        assert written.copies == expected[:copies]
    assert copy.pages[0][0] == source.pages[0][0]
    assert copy.pages[0][1] != source.pages[0][1]
    tables.check([source, copy])


def test_a_fork_shares_only_what_it_will_see():
    tables = PageTables([full_group(), window_group(3)], PAGE_SIZE)
    source, copy = sequences([1] * 16, num_groups=2, n=2)
    tables.extend(source, 14, draft())
    tables.fork(source, copy, 13)
    full, window = copy.pages
    assert full == source.pages[0]
    assert window == [0, 0, source.pages[1][2], source.pages[1][3]]


def test_a_source_that_has_gone_on_too_far_cannot_be_forked():
    tables = PageTables([window_group(3)], PAGE_SIZE)
    [source] = sequences([1] * 16, num_groups=1)
    tables.extend(source, 16, draft())
    assert tables.can_fork(source, 7)
    source.num_committed = 11
    tables.trim(source, draft())
    assert not tables.can_fork(source, 7)
    assert tables.can_fork(source, 10)
    assert source.pages[0][0] == 0


def test_a_sequences_last_pages_are_evicted_first():
    tables = PageTables([full_group(5)], PAGE_SIZE)
    [first] = sequences([1] * 16, num_groups=1)
    tables.extend(first, 16, draft())
    first.num_committed = 16
    tables.publish(first)
    tables.release(first)
    [other] = sequences([2] * 8, num_groups=1)
    tables.extend(other, 8, draft())
    [again] = sequences([1] * 17, num_groups=1)
    assert tables.num_tokens(tables.cached_pages(again)) == 8
    tables.check([other])
