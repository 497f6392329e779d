"""The whole model with the kernel of a chip that is not here, in its interpreter.

Nothing but the chip's name differs from a run on the CPU: the tokens are those of the plain form.
"""

import functools

import jax
import pytest

from jaxinfer.ops import attention
from jaxinfer.sampling_params import SamplingParams
from pallas_kernels import dispatch, ragged_paged_attention
from pallas_kernels.dispatch import Chip
from pallas_kernels.ragged_paged_attention.tpu_pages import TpuKVPages
from tests.e2e.tiny import OracleTable, house_of, prompts

pytestmark = pytest.mark.interpreted


class Patient(OracleTable):
    """Waits for each program: the interpreter must find the threads of the CPU free."""

    def __getitem__(self, name):
        program = super().__getitem__(name)
        return lambda *arguments: jax.block_until_ready(program(*arguments))


def test_the_tokens_of_the_tpu_kernel_are_those_of_the_plain_form(monkeypatch):
    plain = house_of((12, None))
    params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    asked = prompts(2, [17, 9])
    expected = [plain.expected(prompt, params) for prompt in asked]

    monkeypatch.setattr(dispatch, "chip", lambda: Chip("tpu", "TPU v6 lite"))
    kernel = functools.partial(ragged_paged_attention, interpret=True)
    monkeypatch.setattr(attention, "ragged_paged_attention", kernel)
    table = Patient(plain.model, plain.oracle.shapes)
    _, cache, _ = table._arguments
    assert {type(pages) for pages in cache} == {TpuKVPages}
    table.compile()
    house = type(plain)(plain.model, table)
    assert [house.expected(prompt, params) for prompt in asked] == expected
