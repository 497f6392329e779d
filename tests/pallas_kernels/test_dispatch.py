"""The rule by which an implementation is chosen."""

import pytest

import pallas_kernels
from pallas_kernels.dispatch import NAMES, NoImplementation, choose


def test_the_first_implementation_that_can_is_chosen():
    refusals = {"tpu": lambda: "no chip", "xla": lambda: None, "reference": lambda: None}
    assert choose("operation", refusals) == "xla"


def test_a_named_implementation_is_chosen_over_faster_ones():
    refusals = {"xla": lambda: None, "reference": lambda: None}
    assert choose("operation", refusals, "reference") == "reference"


def test_a_named_implementation_that_cannot_fails_with_its_reason():
    with pytest.raises(NoImplementation, match=r"operation .* xla: page too small$"):
        choose("operation", {"xla": lambda: "page too small", "reference": lambda: None}, "xla")


def test_when_none_can_every_implementation_has_a_reason():
    with pytest.raises(NotImplementedError) as error:
        choose("operation", {"xla": lambda: "no luck"})
    for reason in ("no tpu kernel in this build", "no gpu kernel", "xla: no luck", "no reference"):
        assert reason in str(error.value)


def test_an_unknown_name_is_refused_with_the_names_that_exist():
    with pytest.raises(ValueError, match=r"'cuda' is not one of None, tpu, gpu, xla, reference"):
        choose("operation", {}, "cuda")
    assert NAMES == ("tpu", "gpu", "xla", "reference")


def test_every_public_name_exists():
    assert all(hasattr(pallas_kernels, name) for name in pallas_kernels.__all__)
