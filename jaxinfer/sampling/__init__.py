"""From logits to tokens on the device, each request with its own parameters.

``slot_sampling`` turns a request's parameters into a row, ``admit`` puts the row into a slot,
``sample`` chooses a token for every slot and counts it, ``score`` rates given tokens.
"""

from jaxinfer.sampling.bad_words import BadWords
from jaxinfer.sampling.keys import sample_key
from jaxinfer.sampling.sample import SampleOutput, sample
from jaxinfer.sampling.scores import Scores, score
from jaxinfer.sampling.slot import SlotSampling, blank_slot_sampling, slot_sampling
from jaxinfer.sampling.state import SamplingState, admit, init_state, record

__all__ = [
    "BadWords",
    "SampleOutput",
    "SamplingState",
    "Scores",
    "SlotSampling",
    "admit",
    "blank_slot_sampling",
    "init_state",
    "record",
    "sample",
    "sample_key",
    "score",
    "slot_sampling",
]
