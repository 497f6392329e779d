"""``score``: the figures that LLM.score finds."""

import io
import json

import pytest


def test_a_text_and_a_continuation(run_json, loaded, tiny_llm):
    wanted = tiny_llm.score(["hello", ("hel", "lo")], use_tqdm=False)
    [whole] = run_json("score", "hello")
    [rest] = run_json("score", "hel", "--continuation=lo")
    for found, score in zip((whole, rest), wanted, strict=True):
        assert found["logprob"] == pytest.approx(score.logprob, abs=1e-4)
        assert found["perplexity"] == pytest.approx(score.perplexity, rel=1e-5)
        assert found["token_ids"] == list(score.token_ids)
        assert found["num_tokens"] == len(found["token_logprobs"]) == len(score.token_ids)
        assert found["is_greedy"] == score.is_greedy


def test_lines_of_a_file_are_scored_in_order(run_json, loaded, tmp_path, monkeypatch):
    lines = [{"text": "hello"}, {"text": "hel", "continuation": "lo"}, {"text": "you there"}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "texts").write_text(text)
    documents = run_json("score", "--file", tmp_path / "texts")
    assert [document["num_tokens"] for document in documents] == [4, 2, 8]
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert run_json("score", "--file", "-") == documents


def test_what_else_ends_a_line_of_unicode_may_stand_in_a_string(run_json, loaded, tmp_path):
    (tmp_path / "texts").write_text('{"text": "a\u2028b"}\n', encoding="utf-8")
    [document] = run_json("score", "--file", tmp_path / "texts")
    assert document["num_tokens"] == len("a\u2028b".encode()) - 1


def test_without_json_a_line_a_text(run, loaded):
    status, out, _ = run("score", "hello")
    assert status == 0
    names = [column.split()[0] for column in out.strip().split("\t")]
    assert names == ["logprob", "perplexity", "num_tokens", "is_greedy"]


@pytest.mark.parametrize("line", ["no json", "[]", "{}", '"text"'])
def test_a_line_of_another_form_is_named(run, loaded, tmp_path, line):
    (tmp_path / "texts").write_text('{"text": "hello"}\n' + line)
    status, out, err = run("score", "--file", tmp_path / "texts")
    assert (status, out) == (2, "")
    assert "line 2 of --file" in err


@pytest.mark.parametrize("entry", [{"text": ["a", "b"]}, {"text": "a", "continuation": [1]}])
def test_a_text_that_is_a_list_is_wrong_usage(run, loaded, tmp_path, entry):
    (tmp_path / "texts").write_text(json.dumps(entry))
    status, out, err = run("score", "--file", tmp_path / "texts")
    assert (status, out) == (2, "")
    assert "a text to score is" in err


def test_nothing_to_score_is_wrong_usage(run, loaded):
    status, _, err = run("score", "x")
    assert status == 2
    assert "nothing to score" in err
