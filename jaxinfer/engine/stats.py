"""Counters of an engine's life so far."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(kw_only=True)
class EngineStats:
    """All counts since the engine was made.

    Attributes:
        num_steps: launched steps.
        num_micro_steps: the same, but each of several decode steps in one call counts.
        num_computed_tokens: tokens whose K/V a step computed; recomputed ones count again.
        num_generated_tokens: sampled tokens that were read back and belong to somebody.
        num_preemptions: times a sequence lost its slot and pages, to compute them again.
        num_dropped_rows: rows that brought something for a sequence that had left its slot.
        num_forks: samples that took over a sibling's prompt.
        num_copied_pages: pages copied because they were about to be written while shared.
        prefix_query_tokens: tokens of admitted sequences that were looked up in the prefix cache.
        prefix_hit_tokens: those of them that it held.
        num_read_steps: steps that were read back.
        host_seconds: what steps took besides waiting for the device, over all of them: planning,
            launching, committing, making and delivering events.
        device_seconds: how long steps were on the device: from the launch, or from the end of the
            one before where that was later, to when it was read. One step ahead of the device the
            host's work is hidden in it; a host that is slower than the device makes it longer,
            because nobody was there to read. So it is never more than the time that has passed.
        num_failed_steps: times the device failed, and what was in slots was computed again or lost.
        used_pages_peak: by layer group.
        cached_token_steps: tokens of running sequences in the cache, summed over all steps.
        paged_token_steps: tokens that the pages in use had room for (first group), the same.
        contiguous_token_steps: tokens that one stretch of ``max_model_len`` for each running
            sequence would have had room for. What paging saves is the ratio of the two.
    """

    num_steps: int = 0
    num_micro_steps: int = 0
    num_computed_tokens: int = 0
    num_generated_tokens: int = 0
    num_preemptions: int = 0
    num_dropped_rows: int = 0
    num_forks: int = 0
    num_copied_pages: int = 0
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    num_read_steps: int = 0
    host_seconds: float = 0.0
    device_seconds: float = 0.0
    num_failed_steps: int = 0
    used_pages_peak: tuple[int, ...] = ()
    cached_token_steps: int = 0
    paged_token_steps: int = 0
    contiguous_token_steps: int = 0

    def note_used_pages(self, used_pages: Sequence[int]) -> None:
        """``used_pages``: by layer group, now."""
        peak = self.used_pages_peak or (0,) * len(used_pages)
        self.used_pages_peak = tuple(map(max, peak, used_pages))
