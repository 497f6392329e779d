"""Messages of a stream that one message has no room for, as several."""

from collections.abc import Iterator

from serve.proto import inference_pb2 as pb

#: Bytes around what is parted: a prompt's name is told with each part of it.
ROOM_BESIDES = 2048


def delta_parts(delta: pb.TokenDelta, max_bytes: int) -> Iterator[pb.TokenDelta]:
    """Deltas of at most so many bytes, one token at least, that add up to the same."""
    num_tokens = len(delta.token_ids)
    # Most deltas are one token, and counting bytes takes as long as writing them.
    if num_tokens < 2 or delta.ByteSize() <= max_bytes:
        yield delta
        return
    token, letter = num_tokens // 2, len(delta.text) // 2
    for tokens, letters in (
        (slice(token), slice(letter)),
        (slice(token, None), slice(letter, None)),
    ):
        half = pb.TokenDelta(
            index=delta.index,
            text=delta.text[letters],
            token_ids=delta.token_ids[tokens],
            logprobs=delta.logprobs[tokens],
        )
        yield from delta_parts(half, max_bytes)


def prompt_parts(prompt: pb.PromptInfo, max_bytes: int) -> Iterator[pb.PromptInfo]:
    """The same of a prompt: log-probabilities of each part follow those of the one before."""
    num_positions = len(prompt.logprobs)
    if num_positions < 2 or prompt.ByteSize() <= max_bytes:
        yield prompt
        return
    middle = num_positions // 2
    for positions in (slice(middle), slice(middle, None)):
        half = pb.PromptInfo(
            request_id=prompt.request_id,
            model=prompt.model,
            prompt_tokens=prompt.prompt_tokens,
            logprobs=prompt.logprobs[positions],
        )
        yield from prompt_parts(half, max_bytes)
