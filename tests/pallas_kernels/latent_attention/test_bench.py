"""The bench and the specs it shares with the tests."""

import json

import numpy as np

from pallas_kernels.latent_attention import bench
from pallas_kernels.latent_attention.specs import SPECS, Spec

TINY = Spec(
    num_heads=3,
    latent_rank=16,
    rope_dim=8,
    rows=((1, 9), (3, 5)),
    page_size=8,
    max_len=16,
    layers=2,
)


def test_the_last_line_is_json_with_time_limit_and_fraction(capsys, monkeypatch):
    monkeypatch.setitem(SPECS, "tiny", TINY)
    bench.main(["--spec", "tiny", "--repeats", "2", "--pages-dtype", "float32"])
    *lines, last = capsys.readouterr().out.splitlines()
    document = json.loads(last)
    (result,) = document["results"]
    assert lines[0].startswith("tiny: ")
    assert (result["spec"], result["layers"], result["page_size"]) == ("tiny", 2, 8)
    limits = document["limits"]
    least = max(
        TINY.layers * TINY.latent_bytes(4) / limits["bytes_per_second"],
        TINY.layers * TINY.flops / limits["flops_per_second"],
    )
    np.testing.assert_allclose(result["achieved"], least / (result["min_ms"] / 1e3))


def test_what_is_refused_is_listed_with_its_reason(capsys, monkeypatch):
    monkeypatch.setitem(SPECS, "tiny", TINY)
    bench.main(["--spec", "tiny", "--implementation", "xla", "--json"])
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert "no xla kernel in this build" in result["refused"]


def test_work_counts_every_visible_position_once():
    visible = 9 + (3 + 4 + 5)
    assert TINY.flops == visible * 3 * 2 * ((16 + 8) + 16)
    assert TINY.latent_bytes(2) == (9 + 5) * (16 + 8) * 2
    assert TINY.batch.num_pages == 1 + 2 + 1


def test_the_scale_is_that_of_the_heads_before_absorption():
    assert SPECS["deepseek-v3-decode"].scale == 192**-0.5
