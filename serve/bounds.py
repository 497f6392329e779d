"""What is refused by its size alone, before anybody copies, encodes or keeps it."""

from collections.abc import Sequence, Sized
from typing import TypeVar

from google.protobuf.message import Message

from jaxinfer.errors import InvalidParameter, PromptTooLong
from jaxinfer.sampling_params import SamplingParams

Values = TypeVar("Values", bound=Sized)

#: Entries of any list in a message; what the model has room for is usually less.
MAX_LIST = 65_536
#: Characters of a request's id, or of a salt.
MAX_NAME = 256
#: Characters of a text to tokenize that is not meant to be a prompt.
MAX_TOKENIZED = 2**20
#: Bytes that a message may be longer than the prompt in it.
_MAX_BESIDES_PROMPT = 2**22
#: Bytes on the wire of a token with its text, and of a log-probability with that. Longer texts
#: are rare; what has many of them is parted, or refused when it is there.
_TOKEN_BYTES, _LOGPROB_BYTES = 16, 32


def few(name: str, values: Values) -> Values:
    """The values themselves.

    Raises:
        InvalidParameter: there are too many even to look at them.
    """
    if len(values) > MAX_LIST:
        raise InvalidParameter(f"{name} holds {len(values)} entries: at most {MAX_LIST} are read")
    return values


def require_short(name: str, value: str) -> None:
    """Raises InvalidParameter for a name that is too long to keep."""
    if len(value) > MAX_NAME:
        raise InvalidParameter(f"{name} has {len(value)} characters: give it at most {MAX_NAME}")


def require_room_for_ids(token_ids: Sequence[int], max_model_len: int) -> None:
    """Raises PromptTooLong where they leave no room for a new token."""
    if len(token_ids) >= max_model_len:
        raise PromptTooLong(
            f"the prompt has {len(token_ids)} tokens: at most {max_model_len - 1} "
            f"leave room for a new one in the context of {max_model_len}"
        )


def require_room_for_text(num_characters: int, most: int) -> None:
    """Raises PromptTooLong where no tokenizer makes so few tokens of it that they fit."""
    if num_characters > most:
        raise PromptTooLong(
            f"the text has {num_characters} characters: at most {most} are encoded here; shorten it"
        )


def most_bytes(max_text: int) -> int:
    """Of any request that can mean something.

    Small messages in a large one take 30 times as much memory as it has bytes, and nobody else is
    answered while they are made. ``max_text``: characters of the longest prompt.
    """
    return 4 * max(max_text, MAX_TOKENIZED) + _MAX_BESIDES_PROMPT


def require_lean(message: Message, max_prompt: int) -> None:
    """Raises InvalidParameter for a message that is longer than all that can be used of it.

    It is kept as long as its request lives. ``max_prompt``: characters of the longest prompt.
    """
    most = 4 * max_prompt + _MAX_BESIDES_PROMPT
    if (size := message.ByteSize()) > most:
        raise InvalidParameter(
            f"the request has {size} bytes, of which at most {most} can mean anything here"
        )


def require_sendable_prompt(params: SamplingParams, prompt_len: int, max_bytes: int) -> None:
    """Raises InvalidParameter where the log-probabilities of a prompt fit into no message."""
    size = _prompt_bytes(params, prompt_len)
    if size > max_bytes:
        raise InvalidParameter(
            f"prompt_logprobs = {params.prompt_logprobs} of {prompt_len} tokens may take {size}"
            f" bytes: one message has at most {max_bytes} (max_message_bytes); ask for fewer, or"
            " send a shorter prompt"
        )


def require_sendable(
    params: SamplingParams, prompt_len: int, max_model_len: int, max_bytes: int
) -> None:
    """Raises InvalidParameter where all outputs, and what is told of the prompt, fit into no
    message."""
    require_sendable_prompt(params, prompt_len, max_bytes)
    room = max_model_len - prompt_len
    num_tokens = room if params.max_tokens is None else min(params.max_tokens, room)
    num_logprobs = 0 if params.logprobs is None else 1 + params.logprobs
    size = params.n * num_tokens * (_TOKEN_BYTES + num_logprobs * _LOGPROB_BYTES)
    size += _prompt_bytes(params, prompt_len)
    if size > max_bytes:
        logprobs = "" if params.logprobs is None else f" with logprobs = {params.logprobs}"
        raise InvalidParameter(
            f"n = {params.n} outputs of up to {num_tokens} tokens{logprobs} may take {size} bytes:"
            f" one message has at most {max_bytes} (max_message_bytes); set max_tokens, ask for"
            " less, or read a stream"
        )


def require_fits(size: int, max_bytes: int) -> None:
    """Raises InvalidParameter where an answer of ``size`` bytes fits into no message."""
    if size > max_bytes:
        raise InvalidParameter(
            f"the answer has {size} bytes or more: one message has at most {max_bytes}"
            " (max_message_bytes); ask for less at once, or read a stream where there is one"
        )


def _prompt_bytes(params: SamplingParams, prompt_len: int) -> int:
    """Of a prompt's log-probabilities."""
    if params.prompt_logprobs is None:
        return 0
    return (prompt_len - 1) * (1 + params.prompt_logprobs) * _LOGPROB_BYTES
