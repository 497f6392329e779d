"""The bench and the specs it shares with the tests."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import benchmark, gather_kv_pages, init_kv_pages, scatter_kv_pages
from pallas_kernels.benchmark import Step, is_wrong
from pallas_kernels.limits import Limits
from pallas_kernels.ragged_paged_attention import check
from pallas_kernels.ragged_paged_attention.bench import OPERATION
from pallas_kernels.ragged_paged_attention.gpu_pages import allocate_gpu_kv_pages
from pallas_kernels.ragged_paged_attention.specs import ACCELERATOR_SPECS, SPECS, Spec


def test_the_last_line_is_json_with_time_limit_and_fraction(capsys, monkeypatch):
    tiny = Spec(
        num_heads=2, num_kv_heads=1, head_dim=8, rows=((1, 9), (3, 3)), page_size=8, layers=2
    )
    monkeypatch.setitem(SPECS, "tiny", tiny)
    limits = Limits(bytes_per_second=1e9, flops_per_second=1e9, dtype="float32")
    monkeypatch.setattr(benchmark, "measure_limits", lambda _: limits)
    benchmark.main(
        OPERATION, ["--spec", "tiny", "--repeats", "2", "--json", "--pages-dtype", "int8"]
    )
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    (result,) = document["results"]
    assert document["limits"]["bytes_per_second"] == 1e9
    assert (result["spec"], result["layers"], result["page_size"]) == ("tiny", 2, 8)
    assert (result["pages_dtype"], document["chip"]) == ("int8", jax.devices()[0].device_kind)
    assert result["achieved"] > 0


def test_a_spec_that_is_refused_is_told_with_its_reason(capsys, monkeypatch):
    limits = Limits(bytes_per_second=1e9, flops_per_second=1e9, dtype="float32")
    monkeypatch.setattr(benchmark, "measure_limits", lambda _: limits)
    benchmark.main(
        OPERATION, ["--spec", "smollm2-decode-1", "--implementation", "xla", "--page-size", "24"]
    )
    (result,) = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    assert "page_size = 24 is not one of" in result["refused"]


@pytest.mark.parametrize("window", [None, 4])
def test_work_counts_every_visible_position_once(window):
    spec = Spec(
        num_heads=6, num_kv_heads=2, head_dim=8, rows=((1, 9), (3, 5)), sliding_window=window
    )
    visible = {None: 9 + (3 + 4 + 5), 4: 4 + (3 + 4 + 4)}[window]
    read = {None: 9 + 5, 4: 4 + 5}[window]
    assert spec.flops == visible * 6 * 8 * 4
    assert spec.kv_bytes(2) == read * 2 * 8 * 2 * 2


def test_a_spec_deals_out_every_page_once():
    spec = SPECS["smollm2-mixed"]
    rows = spec.describe(np.random.default_rng(0))
    dealt = np.sort(rows["page_table_SM"][rows["page_table_SM"] > 0])
    np.testing.assert_array_equal(dealt, np.arange(1, spec.num_pages))
    assert rows["kv_lens_S"].tolist() == [n for _, n in spec.rows] + [0] * (32 - len(spec.rows))
    assert rows["distribution_3"].tolist() == [24, 25, 27]


def test_the_specs_of_accelerators_leave_room_on_a_chip_of_16_gigabytes():
    for spec in ACCELERATOR_SPECS.values():
        position = 2 * spec.num_kv_heads * spec.head_dim * np.dtype(spec.pages_dtype).itemsize
        pages = spec.layers * spec.num_pages * spec.page_size * position
        assert pages < 5e9
        assert max(length for _, length in spec.rows) <= spec.max_len


@pytest.mark.parametrize(
    ("pages_dtype", "q_dtype", "rounded_to"),
    [
        ("float32", "float32", "two bfloat16"),
        ("float32", "bfloat16", "bfloat16"),
        ("bfloat16", "float32", "bfloat16"),
    ],
)
def test_a_result_is_as_right_as_the_coarser_of_what_a_gpu_multiplies_and_returns(
    pages_dtype, q_dtype, rounded_to
):
    pages = allocate_gpu_kv_pages(2, 64, 1, 64, pages_dtype)
    assert check.rounded_to(jnp.zeros((1, 1, 64), q_dtype), pages) == rounded_to
    plain = init_kv_pages(2, 64, 1, 64, pages_dtype, implementation="reference")
    assert check.rounded_to(jnp.zeros((1, 1, 64), q_dtype), plain) == q_dtype


@pytest.mark.parametrize(
    ("implementation", "page_size", "head_dim"), [("xla", 8, 8), ("tpu", 32, 64), ("gpu", 64, 64)]
)
@pytest.mark.parametrize("pages_dtype", ["bfloat16", "int8", "float8_e4m3fn"])
def test_pages_are_full_of_numbers(pages_dtype, implementation, page_size, head_dim):
    """Zeros draw less power, and run faster, than what a model writes."""
    spec = Spec(
        num_heads=2,
        num_kv_heads=1,
        head_dim=head_dim,
        rows=((1, 9), (3, 100)),
        page_size=page_size,
        max_len=128,
        layers=2,
        pages_dtype=pages_dtype,
    )
    layers, _ = OPERATION.case(spec, "bfloat16", implementation).make()
    assert len(layers) == 2
    ids = jnp.arange(spec.num_pages, dtype=jnp.int32)
    for pages in layers:
        assert (pages.num_pages, pages.dtype) == (spec.num_pages, jnp.dtype(pages_dtype))
        for x in pages.read(ids, jnp.ones(ids.shape, bool)):
            numbers = np.asarray(x, np.float32)
            assert np.isfinite(numbers).all()
            # In each page, and not one number again and again.
            assert (numbers.reshape(spec.num_pages, -1).std(axis=1) > 0.5).all()
            assert (numbers != 0).mean() > 0.9


CHECKED = Spec(
    num_heads=6,
    num_kv_heads=2,
    head_dim=8,
    rows=((1, 41), (1, 0), (9, 9), (5, 40)),
    page_size=8,
    max_len=64,
    num_slots=5,
    num_tokens=20,
    pages_dtype="int8",
    sliding_window=21,
    logit_softcap=3.0,
    has_sinks=True,
)


def test_a_check_takes_what_is_right_and_finds_one_wrong_token_and_one_wrong_number():
    case = OPERATION.case(CHECKED, "bfloat16", "xla")
    step = Step(case)
    out_TNH = step()
    before, arguments = case.make()
    found = case.errors(before, arguments, out_TNH, step.carried)
    assert not is_wrong(found)
    assert found["checked_tokens"] == CHECKED.tokens

    wrong_TNH = out_TNH.at[15, 4].multiply(jnp.bfloat16(1.1))
    (pages,) = step.carried
    ids_n = jnp.array([3])
    keys_1pKH, values_1pKH = gather_kv_pages(pages, ids_n)
    values_1pKH = values_1pKH.at[0, 2, 1, 5].add(jnp.int8(1))
    wrong = [scatter_kv_pages(pages, ids_n, keys_1pKH, values_1pKH)]
    found = case.errors(before, arguments, wrong_TNH, wrong)
    assert found["row_error"] > 1
    assert found["wrong_in_pages"] == 1
