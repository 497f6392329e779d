"""What a client is told in words."""

import pytest

from jaxinfer.errors import InvalidParameter
from serve.statuses import MAX_MESSAGE, MAX_MESSAGE_BYTES, message_of
from tests.serve.house import CANARY, in_loop, served
from tests.serve.rpc.test_inference import refused


@pytest.mark.parametrize(
    ("character", "num_bytes"), [("a", 1), ("%", 3), ("é", 6), ("漢", 9), ("🙂", 12)]
)
@in_loop
async def test_a_message_in_any_language_arrives(character, num_bytes, monkeypatch):
    message = character * 2000
    expected = character * min(MAX_MESSAGE, MAX_MESSAGE_BYTES // num_bytes)
    assert message_of(InvalidParameter(message)) == expected

    async def refuse(ask):
        raise InvalidParameter(message)

    async with served() as tested:
        monkeypatch.setattr(tested.server.frontend, "generate", refuse)
        for call in (tested.tokens(), tested.events(CANARY)):
            assert (await refused(call)).details() == expected


def test_half_a_surrogate_pair_is_shown_as_a_question_mark():
    assert message_of(InvalidParameter("a \ud800 b")) == "a ? b"


def test_a_message_is_one_line():
    assert message_of(InvalidParameter("a\n  b\tc")) == "a b c"
