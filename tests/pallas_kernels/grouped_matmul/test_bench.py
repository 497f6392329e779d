"""The bench and the specs it shares with the tests."""

import json

import pytest

from pallas_kernels import benchmark
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
