"""One candidate for a kernel's tiles: whether it may be taken, and how long it takes.

Tiles change how fast a kernel is and nothing else. So what a candidate returns is held against what
the heuristic's tiles return; fast nonsense would win every search.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from pallas_kernels.assembler import has_spilled, said_by_the_assembler
from pallas_kernels.benchmark import Case, Step, lower_for
from pallas_kernels.limits import seconds_of
from pallas_kernels.tolerance import TOLERANCE

MOST_ERROR = 4.0
"""What results may differ by, in what rounding allows one of a single layer: both are rounded, and
attention to what a layer has rounded differs by more than that."""
SPILLED = "registers are spilled"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a candidate.

    Attributes:
        refusal: why it is not to be taken, or None.
        microseconds: of one call; None where it was not measured.
        results: of two steps, the second of which reads what the first has written.
    """

    refusal: str | None = None
    microseconds: float | None = None
    results: tuple[jax.Array, ...] = ()


class ChipLost(RuntimeError):
    """The chip runs no program of this process any more."""


def compiled(case: Case, mesh: Mesh) -> Outcome:
    """For the first device of ``mesh``, which need not be here."""
    with said_by_the_assembler() as said:
        lower_for(case, mesh).compile()
    return Outcome(refusal=SPILLED if has_spilled(said) else None)


def measured(case: Case, expected: Sequence[jax.Array] | None) -> Outcome:
    """On the chip that is here, from the carried state and arguments that ``case`` makes.

    ``expected``: the results of the heuristic's tiles; None for those tiles themselves, which are
    run and timed even if they spill, for others are held against them.
    """
    with said_by_the_assembler() as said:
        step = Step(case)
    refusal = SPILLED if has_spilled(said) else None
    if refusal and expected is not None:
        return Outcome(refusal=refusal)
    results = (step(), step())
    wanted = results if expected is None else expected
    errors = [float(_error(*pair)) for pair in zip(results, wanted, strict=True)]
    if not all(error <= MOST_ERROR for error in errors):  # NaN is not.
        return Outcome(refusal=f"its results are wrong: {errors} times what rounding explains")
    # A step has a call for each layer.
    seconds = min(seconds_of(step, repeats=5)) / case.facts.get("layers", 1)
    return Outcome(refusal=refusal, microseconds=1e6 * seconds, results=results)


def is_alive() -> bool:
    """Whether the default device still computes. After an illegal address a GPU does not."""
    try:
        return float(jnp.ones(8).sum()) == 8
    except jax.errors.JaxRuntimeError:
        return False


@jax.jit
def _error(out: jax.Array, expected: jax.Array) -> jax.Array:
    """The largest difference over what rounding allows, by a row's root of the mean square; NaN
    where one of them is no finite number. On the device: results may be of a gigabyte."""
    tolerance = TOLERANCE[out.dtype.name]
    got, wanted = (x.reshape(x.shape[0], -1).astype(jnp.float32) for x in (out, expected))
    size = jnp.sqrt(jnp.mean(wanted**2, axis=1, keepdims=True))
    difference = jnp.abs(got - wanted)
    allowed = tolerance * (size + jnp.abs(wanted))
    return jnp.max(jnp.where(difference == 0, 0.0, difference / allowed))
