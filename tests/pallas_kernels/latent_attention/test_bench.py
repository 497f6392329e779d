"""The bench and the specs it shares with the tests."""

import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import benchmark, gather_latent_pages, scatter_latent_pages
from pallas_kernels.benchmark import Step, is_wrong
from pallas_kernels.latent_attention.bench import OPERATION
from pallas_kernels.latent_attention.specs import SPECS, Spec
from pallas_kernels.limits import Limits

TINY = Spec(
    num_heads=3,
    latent_rank=16,
    rope_dim=8,
    rows=((1, 9), (3, 5)),
    page_size=8,
    max_len=16,
    layers=2,
)


@pytest.fixture(autouse=True)
def limits(monkeypatch):
    monkeypatch.setitem(SPECS, "tiny", TINY)
    known = Limits(bytes_per_second=1e9, flops_per_second=1e9, dtype="float32")
    monkeypatch.setattr(benchmark, "measure_limits", lambda _: known)


def test_the_last_line_is_json_with_the_least_time_over_the_measured_one(capsys):
    arguments = ["--spec", "tiny", "--repeats", "2", "--pages-dtype", "float32"]
    benchmark.main(OPERATION, arguments)
    *lines, last = capsys.readouterr().out.splitlines()
    (result,) = json.loads(last)["results"]
    assert lines[0].startswith("tiny: ")
    assert (result["spec"], result["layers"], result["page_size"]) == ("tiny", 2, 8)
    least = max(TINY.layers * TINY.latent_bytes(4), TINY.layers * TINY.flops) / 1e9
    np.testing.assert_allclose(result["achieved"], least / (result["min_ms"] / 1e3))


def test_what_is_refused_is_listed_with_its_reason(capsys):
    benchmark.main(OPERATION, ["--spec", "tiny", "--implementation", "gpu", "--json"])
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert "page_size = 8 is not one of 64" in result["refused"]


def test_work_counts_every_visible_position_once():
    visible = 9 + (3 + 4 + 5)
    assert TINY.flops == visible * 3 * 2 * ((16 + 8) + 16)
    assert TINY.latent_bytes(2) == (9 + 5) * (16 + 8) * 2
    assert TINY.num_pages == 1 + 2 + 1


def test_the_scale_is_that_of_the_heads_before_absorption():
    assert SPECS["deepseek-v3-decode"].scale == 192**-0.5


@pytest.mark.parametrize(("implementation", "rank"), [("xla", 16), ("tpu", 16), ("gpu", 256)])
def test_pages_are_full_of_numbers(implementation, rank):
    """Zeros draw less power, and run faster, than what a model writes."""
    spec = replace(TINY, latent_rank=rank, rope_dim=32, page_size=64, max_len=64)
    layers, _ = OPERATION.case(spec, "bfloat16", implementation).make()
    assert len(layers) == 2
    ids = jnp.arange(spec.num_pages, dtype=jnp.int32)
    for pages in layers:
        for x in pages.read(ids, jnp.ones(ids.shape, bool)):
            numbers = np.asarray(x, np.float32)
            # In each page, and not one number again and again.
            assert (numbers.reshape(ids.size, -1).std(axis=1) > 0.5).all()
            assert (numbers != 0).mean() > 0.9


def test_a_check_takes_what_is_right_and_finds_one_wrong_token_and_one_wrong_number():
    rows = {"rows": ((1, 9), (1, 0), (3, 5)), "num_slots": 4, "num_tokens": 7}
    case = OPERATION.case(replace(TINY, layers=1, **rows), "bfloat16", "xla")
    step = Step(case)
    out_TNR = step()
    before, arguments = case.make()
    found = case.errors(before, arguments, out_TNR, step.carried)
    assert not is_wrong(found)
    assert found["checked_tokens"] == 7

    wrong_TNR = out_TNR.at[4, 1].multiply(jnp.bfloat16(1.1))
    (pages,) = step.carried
    ids_n = jnp.array([2])
    latents_1pR, ropes_1pr = gather_latent_pages(pages, ids_n)
    wrong = [scatter_latent_pages(pages, ids_n, latents_1pR, ropes_1pr.at[0, 1, 5].add(1))]
    found = case.errors(before, arguments, wrong_TNR, wrong)
    assert found["row_error"] > 1
    assert found["wrong_in_pages"] == 1
