"""The bench of experts counts what is chosen and what there is."""

import json

from jaxinfer.bench.experts import main


def test_each_size_is_measured_and_its_bytes_are_counted(capsys):
    shape = ["--width", "8", "--expert-width", "4", "--top-k", "2", "--dtype", "float32"]
    main(["--experts", "2", "4", "--tokens", "1", "--repeats", "3", "--json", *shape])
    document = json.loads(capsys.readouterr().out)
    assert (document["width"], document["top_k"]) == (8, 2)
    few, many = document["results"]
    an_expert = 3 * 8 * 4 * 4 / 1e6
    for result, there in ((few, 2), (many, 4)):
        assert (result["experts"], result["tokens"], result["experts_hit"]) == (there, 1, 2)
        assert (result["mb_hit"], result["mb_there"]) == (2 * an_expert, there * an_expert)
        assert 0 < result["min_ms"] <= result["median_ms"]


def test_tokens_that_take_all_experts_hit_each_once(capsys):
    main(["--experts", "2", "--tokens", "5", "--repeats", "1", "--width", "8", "--json"])
    [result] = json.loads(capsys.readouterr().out)["results"]
    assert result["experts_hit"] == 2
