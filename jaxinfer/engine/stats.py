"""Counters of an engine's life so far."""

from dataclasses import dataclass


@dataclass(kw_only=True)
class EngineStats:
    """All counts since the engine was made.

    Attributes:
        num_steps: launched steps; ``num_micro_steps`` counts each of several decode steps in one.
        num_computed_tokens: tokens whose K/V a step computed; recomputed ones count again.
        num_generated_tokens: sampled tokens read back and kept by the scheduler.
        num_preemptions: sequences that lost their slot and pages, and computed them again.
        num_dropped_rows: row results of an older generation.
        num_forks, num_copied_pages: samples that took over a sibling's prompt, and copy-on-write.
        prefix_query_tokens, prefix_hit_tokens: prompt tokens looked up, and found in the cache.
        used_pages_peak: by layer group.
        cached_token_steps: cached tokens of running sequences, summed over steps.
        paged_token_steps: room for tokens in the pages of the first group that they held, the same.
        contiguous_token_steps: room that one stretch of ``max_model_len`` a sequence would hold.
        num_failed_steps: times the device failed and everything in flight was lost.
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
    used_pages_peak: tuple[int, ...] = ()
    cached_token_steps: int = 0
    paged_token_steps: int = 0
    contiguous_token_steps: int = 0
    num_failed_steps: int = 0
