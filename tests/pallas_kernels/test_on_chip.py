"""Kernels run on their own chips, in interpreters where there is none, and nowhere else."""

import pytest

from pallas_kernels import dispatch
from pallas_kernels.dispatch import Chip
from tests.pallas_kernels.on_chip import interpret_of, is_on_chip, needs_an_interpreter

HOPPER, AMPERE, TPU = Chip("gpu", "NVIDIA H200"), Chip("gpu", "NVIDIA A100"), Chip("tpu", "TPU v6e")


@pytest.fixture
def chip_is(monkeypatch):
    return lambda chip: monkeypatch.setattr(dispatch, "chip", lambda: chip)


def test_on_the_cpu_kernels_run_in_the_interpreter_that_the_test_wants(chip_is):
    chip_is(Chip("cpu", "cpu"))
    assert not is_on_chip()
    assert interpret_of("tpu", how := object()) is how
    needs_an_interpreter("races")


@pytest.mark.parametrize(("kernel", "chip"), [("gpu", HOPPER), ("tpu", TPU)])
def test_a_kernel_runs_as_itself_on_its_chip(kernel, chip, chip_is):
    chip_is(chip)
    assert interpret_of(kernel, object()) is False
    with pytest.raises(pytest.skip.Exception, match="only an interpreter tells races"):
        needs_an_interpreter("races")


@pytest.mark.parametrize(("kernel", "chip"), [("gpu", AMPERE), ("gpu", TPU), ("tpu", HOPPER)])
def test_a_kernel_for_another_chip_is_skipped_with_the_reason(kernel, chip, chip_is):
    chip_is(chip)
    with pytest.raises(pytest.skip.Exception, match=f"the chip is {chip.kind} .*, not a "):
        interpret_of(kernel)


def test_what_is_no_kernel_runs_everywhere(chip_is):
    for chip in (HOPPER, TPU):
        chip_is(chip)
        assert not interpret_of("reference")
