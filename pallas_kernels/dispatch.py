"""Which implementation of an operation runs: the first that can, or the one that was named.

Every operation has up to four implementations: ``tpu`` and ``gpu`` (Pallas kernels), ``xla`` (the
fast plain-XLA form) and ``reference`` (the meaning). An operation brings one question per
implementation, "why can you not do this?"; the answer ``None`` means that it can.
"""

import functools
import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax

logger = logging.getLogger(__name__)

NAMES = ("tpu", "gpu", "xla", "reference")
"""All implementation names, in the order in which they are asked when none is named."""

Refusal = Callable[[], str | None]
"""Answers with the reason why an implementation cannot run, or with None when it can."""


HOPPER = ("H100", "H200", "H800", "H20", "GH200")
"""In the names of the GPUs that a kernel for sm_90a runs on."""


class Chip(NamedTuple):
    """What a program is traced for."""

    platform: str
    kind: str

    @property
    def is_hopper(self) -> bool:
        return self.platform == "gpu" and any(name in self.kind for name in HOPPER)


def chip() -> Chip:
    """The chip of the mesh that is set (``jax.set_mesh``, ``jax.shard_map``), which need not be
    here; where none is, that of JAX's default backend."""
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
    return Chip(device.platform, device.device_kind)


class NoImplementation(NotImplementedError):
    """No implementation can run this call; the message has one reason for each that was asked."""


def choose(
    operation: str,
    refusals: Mapping[str, Refusal],
    named: str | None = None,
    chip: Chip | None = None,
) -> str:
    """Returns the name of the implementation of ``operation`` that runs.

    ``refusals`` maps the implementations which exist in this build to their refusals; a name of
    ``NAMES`` that is missing there does not exist. ``named`` asks for one implementation only.
    ``chip``: the one that decides, if it does; where its kernel refuses and a slower implementation
    runs, the log has a warning with the reason, once for each.

    Raises ``ValueError`` if ``named`` is not one of ``NAMES``, and ``NoImplementation`` if nothing
    that was asked can run.
    """
    if named is not None and named not in NAMES:
        raise ValueError(f"implementation = {named!r} is not one of None, {', '.join(NAMES)}")
    reasons: dict[str, str] = {}
    for name in NAMES if named is None else (named,):
        reason = refusals[name]() if name in refusals else f"no {name} kernel in this build"
        if reason is None:
            if chip is not None and chip.platform in reasons:
                _tell_of_fall(operation, name, chip, reasons[chip.platform])
            return name
        reasons[name] = reason
    told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise NoImplementation(f"{operation} has no implementation for this call: {told}")


@functools.cache
def _tell_of_fall(operation: str, name: str, chip: Chip, reason: str) -> None:
    """Cached, so that nobody is told twice."""
    logger.warning(
        "%s runs as %s on %s, not as the %s kernel: %s",
        operation,
        name,
        chip.kind,
        chip.platform,
        reason,
    )
