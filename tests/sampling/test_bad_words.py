"""Which tokens the sequences that must not appear forbid."""

from jaxinfer.sampling import BadWords


def test_a_single_token_is_forbidden_always():
    words = BadWords([[7], [8, 9]])
    assert words.always == {7}
    assert words.needs_history
    assert not BadWords([[7]]).needs_history


def test_the_last_token_is_forbidden_right_after_the_others():
    words = BadWords([[1, 2, 3], [2, 4], [5, 5, 5]])
    assert words.banned([9, 1, 2]) == {3, 4}
    assert words.banned([2]) == {4}
    assert words.banned([1, 2, 9]) == set()
    assert words.banned([5, 5]) == {5}
    assert words.banned([5]) == set()
    assert words.banned([]) == set()


def test_no_sequence_is_ever_completed_when_the_forbidden_are_avoided():
    words = BadWords([[0, 1], [1, 1, 0], [0, 0, 0]])
    history: list[int] = []
    for _ in range(50):
        allowed = {0, 1, 2} - words.banned(history)
        history.append(min(allowed))
    text = "".join(map(str, history))
    assert not any(bad in text for bad in ("01", "110", "000"))
