"""The command that all benches are."""

import json
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import benchmark
from pallas_kernels.benchmark import Case, Operation, each_drawn
from pallas_kernels.limits import Limits


@dataclass(frozen=True)
class Spec:
    errors: tuple[tuple[str, float], ...]
    layers: int = 3


def case(spec, dtype, implementation):
    def errors(before, arguments, result, after):
        assert before == 0
        assert after == spec.layers == 1
        return dict(spec.errors)

    return Case(
        run=lambda carried: (carried, carried + spec.layers),
        make=lambda: (jnp.int32(0), ()),
        num_bytes=1,
        flops=1,
        facts={"layers": spec.layers},
        errors=errors,
    )


SPECS = {
    "right": Spec((("error", 1.0), ("row_error", 0.3), ("wrong_in_pages", 0), ("checked", 256))),
    "a wrong number": Spec((("error", 1.1), ("row_error", 0.1))),
    "a wrong row": Spec((("error", 0.9), ("row_error", 1.1))),
    "a wrong page": Spec((("error", 0.0), ("row_error", 0.0), ("wrong_in_pages", 1))),
    "no number": Spec((("error", float("nan")),)),
}


@pytest.fixture
def run(monkeypatch):
    known = Limits(bytes_per_second=1e9, flops_per_second=1e9, dtype="float32")
    monkeypatch.setattr(benchmark, "measure_limits", lambda _: known)
    operation = Operation(name="sum", specs=SPECS, large_specs={}, case=case, changes={})
    return lambda *arguments: benchmark.main(operation, ["--repeats", "1", "--json", *arguments])


def test_a_check_has_one_layer_and_its_errors_stand_beside_the_time(run, capsys):
    run("--spec", "right", "--check")
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert result["layers"] == 3
    assert result["min_ms"] > 0
    assert result.items() >= dict(SPECS["right"].errors).items()


def test_whatever_is_wrong_fails_the_command_after_all_was_printed(run, capsys):
    names = [name for name in SPECS if name != "right"]
    with pytest.raises(SystemExit, match=f"^not what the reference says: {', '.join(names)}$"):
        run("--check")
    assert len(json.loads(capsys.readouterr().out)["results"]) == len(SPECS)


def test_nothing_is_checked_unasked(run, capsys):
    run()
    assert "error" not in capsys.readouterr().out


def test_things_are_drawn_each_by_itself_with_the_first_axis_of_one_joined():
    draw = each_drawn(lambda key: {"x": jax.random.normal(key, (1, 2))}, 3)
    drawn = draw(jax.random.key(0))
    assert drawn["x"].shape == (3, 2)
    assert len({float(number) for number in drawn["x"].ravel()}) == 6
