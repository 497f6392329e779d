"""What streams out, piece by piece, is what decoding at once gives."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxinfer.errors import InvalidPrompt
from jaxinfer.tokenizer import IncrementalDecoder

IDS = st.lists(st.integers(0, 459), max_size=60)


def push_one_by_one(decoder: IncrementalDecoder, ids) -> list[str]:
    return [decoder.push([token_id]) for token_id in ids] + [decoder.flush()]


@given(ids=IDS, skip=st.booleans())
def test_the_pieces_of_random_tokens_join_to_the_decoded_text(any_tokenizer, ids, skip):
    decoder = IncrementalDecoder(any_tokenizer, skip_special_tokens=skip)
    expected = any_tokenizer.decode(ids, skip_special_tokens=skip)
    assert "".join(push_one_by_one(decoder, ids)) == expected


@given(ids=IDS, skip=st.booleans())
def test_random_tokens_decode_as_in_the_tokenizers_package(byte_level, original, ids, skip):
    expected = original.decode(ids, skip_special_tokens=skip)
    assert byte_level.decode(ids, skip_special_tokens=skip) == expected


@given(text=st.text(), sizes=st.lists(st.integers(0, 5), min_size=1))
def test_the_pieces_of_a_text_join_to_it_however_the_tokens_arrive(any_tokenizer, text, sizes):
    ids = any_tokenizer.encode(text, add_special_tokens=False, parse_special=False)
    decoder = IncrementalDecoder(any_tokenizer, skip_special_tokens=False)
    pieces = []
    rest = ids
    for size in sizes:
        pieces.append(decoder.push(rest[:size]))
        rest = rest[size:]
    pieces += [decoder.push(rest), decoder.flush()]
    assert "".join(pieces) == any_tokenizer.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("text", ["🤣", "👨‍👩‍👧‍👦", "語é\u0301"])
def test_no_piece_shows_a_part_of_a_character(any_tokenizer, text):
    ids = any_tokenizer.encode(text, add_special_tokens=False)
    pieces = push_one_by_one(IncrementalDecoder(any_tokenizer), ids)
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) == text


def test_a_whole_character_is_shown_at_once(byte_level):
    decoder = IncrementalDecoder(byte_level)
    *first, last = byte_level.encode("🤣")
    assert decoder.push(first) == ""
    assert decoder.push([last]) == "🤣"
    assert decoder.flush() == ""


def test_an_unfinished_character_is_replaced_at_the_end(byte_level):
    decoder = IncrementalDecoder(byte_level)
    assert decoder.push(byte_level.encode("a🤣")[:-1]) == "a"
    assert decoder.flush() == "\ufffd"


def test_a_special_token_between_the_bytes_of_a_character_is_skipped(byte_level):
    first, *others = byte_level.encode("🤣")
    assert byte_level.decode([first, 2, *others]) == "🤣"
    pieces = push_one_by_one(IncrementalDecoder(byte_level), [first, 2, *others])
    assert "".join(pieces) == "🤣"


def test_only_at_the_start_of_a_text_the_first_space_is_a_mark(sentencepiece):
    ids = sentencepiece.encode("the text", add_special_tokens=False)
    assert IncrementalDecoder(sentencepiece).push(ids) == "the text"
    assert IncrementalDecoder(sentencepiece, continues_text=True).push(ids) == " the text"


def test_padding_of_the_vocabulary_is_empty_text_and_negative_ids_are_refused(any_tokenizer):
    decoder = IncrementalDecoder(any_tokenizer)
    assert decoder.push([any_tokenizer.vocab_size, 2**31]) == ""
    with pytest.raises(InvalidPrompt, match="must not be negative, as -1 is"):
        decoder.push([-1])
