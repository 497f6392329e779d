"""What must leave no trace in a row's numbers: what it is for every attention, and nothing else."""

from tests.pallas_kernels.independence import (  # noqa: F401
    test_a_broken_row_touches_no_other_row,
    test_a_layer_without_its_own_reads_what_another_layer_wrote,
    test_a_prompt_in_chunks_equals_the_whole_prompt,
    test_a_row_alone_equals_itself_among_others_bit_for_bit,
    test_a_row_that_claims_the_tokens_of_another_is_idle,
    test_a_row_with_more_tokens_than_there_are_is_idle,
    test_a_row_with_tokens_before_the_first_is_idle,
    test_broken_rows_of_every_kind_count_as_idle,
    test_entries_that_are_no_page_are_not_seen,
    test_rows_beyond_the_last_zone_are_padding,
    test_what_is_unwritten_counts_as_if_written_and_leaves_the_pages_alone,
    test_zones_are_hints_that_never_change_a_result,
)
