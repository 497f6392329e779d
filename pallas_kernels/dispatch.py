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

KERNELS_NEED = {"tpu": "a TPU", "gpu": f"a Hopper GPU ({', '.join(HOPPER)})"}
"""By the implementations that are kernels for one kind of chip."""


class Chip(NamedTuple):
    """What a program is traced for."""

    platform: str
    kind: str

    @property
    def is_hopper(self) -> bool:
        return self.platform == "gpu" and any(name in self.kind for name in HOPPER)

    def refuse(self, kernel: str) -> str | None:
        """Why ``kernel``, one of ``KERNELS_NEED``, does not run here, or None."""
        if self.platform == kernel and (kernel != "gpu" or self.is_hopper):
            return None
        return f"the chip is {self.kind} ({self.platform}), not {KERNELS_NEED[kernel]}"


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
    runs, or ``reference`` on whatever chip, the log has a warning with the reasons, once for each.

    Raises ``ValueError`` if ``named`` is not one of ``NAMES``, and ``NoImplementation`` if nothing
    that was asked can run.
    """
    if named is not None and named not in NAMES:
        raise ValueError(f"implementation = {named!r} is not one of None, {', '.join(NAMES)}")
    reasons: dict[str, str] = {}
    for name in NAMES if named is None else (named,):
        reason = refusals[name]() if name in refusals else f"no {name} kernel in this build"
        if reason is None:
            if chip is not None and (chip.platform in reasons or name == "reference"):
                faster = {x: why for x, why in reasons.items() if x in (chip.platform, "xla")}
                _tell_of_fall(operation, name, chip, tuple(faster.items()))
            return name
        reasons[name] = reason
    told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise NoImplementation(f"{operation} has no implementation for this call: {told}")


def refuse_to_run(operation: str, name: str, interpret: bool, arrays: object) -> None:
    """Raises ``NoImplementation`` where a kernel that was named for other chips is to run, not
    only to be compiled: where all ``arrays`` are here."""
    is_traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(arrays))
    if interpret or is_traced or name not in KERNELS_NEED:
        return
    if reason := chip().refuse(name):
        raise NoImplementation(
            f"{operation} cannot run as {name} here: {reason}. Leave the implementation to choice,"
            " or run it in the interpreter (interpret=True)"
        )


@functools.cache
def _tell_of_fall(
    operation: str, name: str, chip: Chip, reasons: tuple[tuple[str, str], ...]
) -> None:
    """Cached, so that nobody is told twice."""
    instead = "; ".join(
        f"not as {f'the {faster} kernel' if faster in KERNELS_NEED else faster}: {reason}"
        for faster, reason in reasons
    )
    logger.warning("%s runs as %s on %s, %s", operation, name, chip.kind, instead)
