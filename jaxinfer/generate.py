"""The plain loop: one prompt, one slot, no scheduler. Read this first.

A prompt goes through ``prefill`` once, which writes its keys and values into pages and samples the
first token; then each ``decode`` reads the last token from the slot, writes its key and value, and
samples the next. The engine does the same for many sequences at once; this is the oracle that its
tokens are compared with.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from jaxinfer.batch import pack_decode, pack_prefill
from jaxinfer.decoding.programs import ProgramTable
from jaxinfer.errors import InvalidParameter, InvalidPrompt, PromptTooLong
from jaxinfer.sampling import SlotSampling

_SLOT = 0


class _Row:
    """What ``jaxinfer.batch`` asks of a row: here, always the one sequence in slot 0."""

    slot, start, samples = _SLOT, 0, True

    def __init__(self, tokens: np.ndarray | None):
        self.tokens = tokens


def generate(
    table: ProgramTable, prompt_token_ids: Sequence[int], sampling: SlotSampling
) -> Iterator[int]:
    """Yields new token ids until the sequence ends: a stop id (also yielded), or ``max_tokens``.

    ``table``: compiled programs; the whole prompt must fit one prefill. ``sampling``: made by
    ``jaxinfer.sampling.slot_sampling``.

    Raises:
        InvalidPrompt: an empty prompt.
        PromptTooLong: longer than the largest prefill, or than one sequence's pages.
        InvalidParameter: a table whose pools are too small for one whole sequence.
    """
    prompt = np.asarray(prompt_token_ids, np.int32)
    _check(table, prompt)
    shapes = table.shapes

    # Pages 1, 2, 3 ... belong to the only sequence; page 0 is never owned.
    pages_SM = np.zeros((shapes.num_slots, shapes.pages_per_sequence), np.int32)
    pages_SM[_SLOT] = 1 + np.arange(shapes.pages_per_sequence)
    page_tables = table.replicate(tuple(pages_SM for _ in shapes.num_pages))
    anything_SW = table.replicate(table.unrestricted())

    cache = table.empty_cache()
    slot, row = table.replicate((np.int32(_SLOT), sampling.with_tokens(prompt, ())))
    slots = table["admit"](table.empty_slots(), slot, row)

    size = table.prefill_size(len(prompt))
    packed = table.replicate(pack_prefill([_Row(prompt)], size, shapes.num_slots))
    cache, slots, output, _ = table.step(
        f"prefill/{size}", cache, slots, page_tables, packed, anything_SW
    )
    planned_S = table.replicate(pack_decode([_Row(None)], shapes.num_slots))
    while True:
        token, _, finish = np.asarray(output.events_J3S)[0, :, _SLOT].tolist()
        yield token
        if finish:
            return
        cache, slots, output, _ = table.step(
            "decode/1", cache, slots, page_tables, planned_S, anything_SW
        )


def _check(table: ProgramTable, prompt: np.ndarray) -> None:
    shapes = table.shapes
    most = min(shapes.prefill_tokens[-1], shapes.pages_per_sequence * shapes.page_size - 1)
    if min(shapes.num_pages) <= shapes.pages_per_sequence:
        raise InvalidParameter(
            f"num_pages = {shapes.num_pages}: every pool needs more than the"
            f" {shapes.pages_per_sequence} pages of one sequence"
        )
    if prompt.size == 0:
        raise InvalidPrompt("the prompt is empty: it needs at least one token")
    if prompt.size > most:
        raise PromptTooLong(
            f"the prompt has {prompt.size} tokens, and this table of programs takes {most}: "
            "build it with longer prefill_tokens and more pages_per_sequence"
        )
