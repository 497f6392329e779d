"""The bench and the specs it shares with the tests."""

import json
from dataclasses import replace

import jax.numpy as jnp
import pytest

from pallas_kernels import benchmark
from pallas_kernels.benchmark import is_wrong
from pallas_kernels.grouped_matmul.bench import OPERATION
from pallas_kernels.grouped_matmul.specs import SPECS, Spec
from pallas_kernels.limits import Limits

TINY = Spec(num_tokens=5, top_k=2, num_groups=4, depth=8, columns=16, num_rows=12)


@pytest.mark.parametrize("w_dtype", [None, "int8"])
def test_the_last_line_is_json_with_time_limit_and_fraction(w_dtype, capsys, monkeypatch):
    monkeypatch.setitem(SPECS, "tiny", TINY)
    limits = Limits(bytes_per_second=1e9, flops_per_second=1e9, dtype="float32")
    monkeypatch.setattr(benchmark, "measure_limits", lambda _: limits)
    scaled = ["--w-dtype", w_dtype] if w_dtype else []
    benchmark.main(OPERATION, ["--spec", "tiny", "--repeats", "2", "--json", *scaled])
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    (result,) = document["results"]
    assert document["limits"]["flops_per_second"] == 1e9
    assert (result["spec"], result["w_dtype"]) == ("tiny", w_dtype or "bfloat16")
    assert result["achieved"] > 0
    assert result["gigaflop"] == 2 * 10 * 8 * 16 / 1e9


def test_work_counts_padding_and_unused_matrices_only_where_they_cost():
    one = Spec(num_tokens=5, top_k=2, num_groups=4, depth=8, columns=16, num_rows=12, routing="one")
    assert one.group_sizes().tolist() == [0, 0, 10, 0]
    assert one.flops == 2 * 10 * 8 * 16
    # Ten rows of x, one matrix of int8, and all twelve rows of the result.
    assert one.num_bytes(2, 1, 4) == 10 * 8 * 2 + 8 * 16 + 12 * 16 * 4


@pytest.mark.parametrize("name", OPERATION.every)
def test_group_sizes_sum_to_the_rows_in_use(name):
    spec = OPERATION.every[name]
    sizes = spec.group_sizes()
    assert sizes.sum() == spec.used_rows <= spec.rows
    if spec.routing == "few":
        assert (sizes > 0).sum() == spec.num_groups // 16


@pytest.mark.parametrize(
    ("implementation", "dtype", "w_dtype"),
    [("reference", "float32", None), ("xla", "bfloat16", None), ("xla", "bfloat16", "int8")],
)
def test_a_check_takes_what_is_right_and_finds_a_wrong_row(implementation, dtype, w_dtype):
    case = OPERATION.case(replace(TINY, w_dtype=w_dtype), dtype, implementation)
    x_TD, arguments = case.make()
    out_TF, _ = case.run(x_TD, *arguments)
    right = case.errors(x_TD, arguments, out_TF, x_TD)
    assert not is_wrong(right)
    assert right["checked_rows"] == TINY.rows
    # What another matrix makes of a row, and padding that is not zero.
    elsewhere = jnp.roll(arguments[1], 1)
    for wrong_TF in (
        case.run(x_TD, arguments[0], elsewhere, *arguments[2:])[0],
        out_TF.at[10, 0].set(1e-3),
    ):
        assert is_wrong(case.errors(x_TD, arguments, wrong_TF, x_TD))
