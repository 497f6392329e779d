"""Stop strings are found in a stream as they are found in the whole text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxinfer.errors import InvalidParameter
from jaxinfer.tokenizer import StopMatcher

LETTERS = st.text("ab🤣", max_size=30)
STOPS = st.lists(st.text("ab🤣", min_size=1, max_size=5), max_size=4)


def first_match(text: str, stops: list[str]) -> tuple[int, int, str] | None:
    """End, start and name of the stop that is complete first, the longest of several."""
    found = [(text.find(stop) + len(stop), text.find(stop), stop) for stop in stops if stop in text]
    return min(found, default=None)


def expected(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    match = first_match(text, stops)
    if match is None:
        return text, None
    end, start, stop = match
    return text[: end if include else start], stop


def stream(matcher: StopMatcher, chunks: list[str]) -> tuple[str, str | None]:
    emitted = ""
    for chunk in chunks:
        text, stop = matcher.push(chunk)
        emitted += text
        if stop is not None:
            return emitted + matcher.flush(), stop
    return emitted + matcher.flush(), None


@given(text=LETTERS, stops=STOPS, include=st.booleans(), data=st.data())
def test_any_chunks_give_what_the_whole_text_gives(text, stops, include, data):
    borders = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    chunks = [
        text[start:end] for start, end in zip([0, *borders], [*borders, len(text)], strict=True)
    ]
    assert stream(StopMatcher(stops, include), chunks) == expected(text, stops, include)


@given(text=LETTERS, stops=STOPS)
def test_what_is_held_back_is_the_longest_beginning_of_a_stop(text, stops):
    emitted, stop = StopMatcher(stops).push(text)
    if stop is None:
        held = text[len(emitted) :]
        beginnings = {name[:length] for name in stops for length in range(len(name))} | {""}
        assert held == max(filter(text.endswith, beginnings), key=len)


def test_of_stops_complete_at_the_same_character_the_longest_matches():
    assert StopMatcher(["b", "ab"]).push("xab") == ("x", "ab")


def test_a_stop_complete_earlier_matches_before_one_that_starts_earlier():
    assert StopMatcher(["abcd", "bc"]).push("abcd") == ("a", "bc")


def test_nothing_comes_after_a_match():
    matcher = StopMatcher(["\n\n"])
    assert matcher.push("a\n\nb") == ("a", "\n\n")
    assert matcher.push("c") == ("", "\n\n")
    assert matcher.flush() == ""


def test_without_stops_text_passes_through():
    matcher = StopMatcher([])
    assert matcher.push("text") == ("text", None)
    assert matcher.flush() == ""


def test_a_long_stop_is_held_until_it_fails():
    matcher = StopMatcher(["a" * 2**14])
    assert matcher.push("a" * (2**14 - 1)) == ("", None)
    assert matcher.push("b") == ("a" * (2**14 - 1) + "b", None)


@pytest.mark.parametrize("stop", ["", None, b"x", 1])
def test_a_stop_that_is_empty_or_no_text_is_refused(stop):
    with pytest.raises(InvalidParameter, match="must be a non-empty str"):
        StopMatcher(["fine", stop])
