"""Flags that commands share, and hand on to each other."""

import argparse

import pytest

from jaxinfer.cli.arguments import add_model_arguments, words_given


def parsed(words):
    parser = argparse.ArgumentParser()
    add_model_arguments(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--model=x y", "--max-model-len=7", "--memory-utilization=0.5"],
        ["--no-prefix-caching", "--tokenizer=-t", "--dtype=float16"],
    ],
)
def test_what_was_given_of_a_model_can_be_handed_on(words):
    args = parsed(words)
    handed_on = words_given(args, add_model_arguments)
    assert sorted(handed_on) == sorted(words)
    assert parsed(handed_on) == args
