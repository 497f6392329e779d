"""A run: each line is answered once, whatever else is in the file and however it ends."""

import asyncio
import json

import pytest

from jaxinfer.engine.faults import FaultyRunner
from jaxinfer.errors import EngineClosed, InvalidParameter, StepFailed
from jaxinfer.sampling_params import SamplingParams
from serve.batch import run as run_module
from serve.batch.ledger import Ledger
from tests.engine.fake_runner import oracle
from tests.engine.house import VOCAB, full_group, text_of
from tests.serve.batch.house import (
    CHAT,
    MAX_LEN,
    by_id,
    engine,
    line,
    read_lines,
    requests,
    run_batch,
    write_lines,
)
from tests.serve.house import JsonTokenizer


@pytest.fixture
def paths(tmp_path):
    return tmp_path / "in.jsonl", tmp_path / "out.jsonl"


def expected_text(entry: dict) -> str:
    """As a plain loop finds it."""
    body = entry["body"]
    prompt = body["messages"][0]["content"] if entry["url"] == CHAT else body["prompt"]
    tokens, _, _ = oracle(
        [ord(letter) - 97 for letter in prompt],
        SamplingParams(temperature=0, ignore_eos=True),
        index=0,
        max_tokens=body["max_tokens"],
        vocab_size=VOCAB,
        groups=(full_group(),),
    )
    return text_of(tokens)


def text_in(result: dict) -> str:
    assert result["error"] is None
    assert result["response"]["status_code"] == 200
    [choice] = result["response"]["body"]["choices"]
    return choice["message"]["content"] if "message" in choice else choice["text"]


def test_each_request_has_the_answer_that_it_would_have_alone(paths):
    inputs, outputs = paths
    entries = requests(40)
    write_lines(inputs, entries)
    with engine() as llm:
        run = run_batch(llm, inputs, outputs)
    results = read_lines(outputs)
    assert run.failure is None
    assert {r["custom_id"]: text_in(r) for r in results} == {
        entry["custom_id"]: expected_text(entry) for entry in entries
    }
    assert len(results) == len(entries)
    assert len({result["id"] for result in results}) == len(entries)
    assert run.progress.num_done == 40
    assert run.progress.num_failed == 0
    assert run.progress.num_completion_tokens == sum(e["body"]["max_tokens"] for e in entries)


def test_a_line_can_say_what_its_output_must_match(paths):
    inputs, outputs = paths
    schema = {"enum": [{"b": "c"}, {"bc": [1, 2]}, [12]]}
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    asked = {"response_format": form, "max_tokens": 40, "ignore_eos": False}
    write_lines(
        inputs,
        [
            line("chat", CHAT, **asked),
            line("completion", **asked),
            line("free"),
            line("nothing", guided_regex="zz"),
        ],
    )
    with engine(tokenizer=JsonTokenizer()) as llm:
        run = run_batch(llm, inputs, outputs)
    results = by_id(read_lines(outputs))
    for name in ("chat", "completion"):
        assert json.loads(text_in(results[name])) in schema["enum"]
    assert results["free"]["response"]["status_code"] == 200
    assert results["nothing"]["response"]["status_code"] == 400
    assert (run.progress.num_done, run.progress.num_failed) == (4, 1)


def test_results_come_in_the_order_in_which_requests_end(paths, monkeypatch):
    inputs, outputs = paths
    write_lines(inputs, [line("long", max_tokens=50), line("short", max_tokens=1)])
    answer = run_module.answer
    with engine() as llm:
        faulty = llm.engine.runner = FaultyRunner(llm.engine.runner)
        faulty.hang()

        async def both_at_once(frontend, ask):
            answering = asyncio.ensure_future(answer(frontend, ask))
            while llm.engine.num_unfinished < 2 and not answering.done():
                await asyncio.sleep(0)
            faulty.go_on()
            return await answering

        monkeypatch.setattr(run_module, "answer", both_at_once)
        run_batch(llm, inputs, outputs)
    assert [result["custom_id"] for result in read_lines(outputs)] == ["short", "long"]


def test_what_is_wrong_with_a_line_is_its_result_and_the_others_go_on(paths):
    inputs, outputs = paths
    entries = [
        line("good"),
        line("long", prompt="a" * MAX_LEN),
        line("field", unknown=1),
        line("model", model="another"),
        json.dumps(line("infinite", temperature=0.25)).replace("0.25", "1e400").encode(),
        line("n", n=10**9),
        b"garbage",
        line("url", url="/v1/embeddings"),
        line("also good"),
    ]
    write_lines(inputs, entries)
    with engine() as llm:
        run = run_batch(llm, inputs, outputs)
    assert run.failure is None
    assert (run.progress.num_done, run.progress.num_failed) == (9, 7)
    results = by_id(read_lines(outputs))
    statuses = {name: r["response"] and r["response"]["status_code"] for name, r in results.items()}
    assert statuses == {
        "good": 200,
        "long": 400,
        "field": 400,
        "model": 404,
        "infinite": 400,
        "n": 400,
        None: None,
        "url": None,
        "also good": 200,
    }
    assert results["url"]["error"] == {
        "code": "invalid_url",
        "message": "line 8: url = '/v1/embeddings' is not allowed: there are /v1/chat/completions "
        "and /v1/completions",
        "line": 8,
    }
    assert results[None]["error"]["line"] == 7
    assert "another" in results["model"]["response"]["body"]["error"]["message"]


def test_ids_that_bodies_give_themselves_do_not_collide(paths):
    inputs, outputs = paths
    write_lines(inputs, [line(name, request_id="mine") for name in "abc"])
    with engine() as llm:
        run_batch(llm, inputs, outputs)
    assert [text_in(result) for result in read_lines(outputs)] == [expected_text(line("a"))] * 3


def test_no_more_is_under_way_than_is_allowed(paths, monkeypatch):
    inputs, outputs = paths
    write_lines(inputs, [line(str(n), n=1 + n % 3) for n in range(30)])
    answer, under_way, most = run_module.answer, [], []

    async def watched(frontend, ask):
        under_way.append(ask.n)
        most.append(sum(under_way))
        try:
            return await answer(frontend, ask)
        finally:
            under_way.remove(ask.n)

    monkeypatch.setattr(run_module, "answer", watched)
    with engine() as llm:
        run_batch(llm, inputs, outputs, max_sequences=5)
    assert len(read_lines(outputs)) == 30
    assert max(most) == 5


def test_one_request_that_is_more_than_is_allowed_runs_alone(paths, monkeypatch):
    monkeypatch.setattr(run_module, "MAX_BYTES_UNDER_WAY", 10)
    inputs, outputs = paths
    write_lines(inputs, [line("a", n=4), line("b"), line("c", n=4)])
    with engine() as llm:
        run_batch(llm, inputs, outputs, max_sequences=2)
    assert [result["custom_id"] for result in read_lines(outputs)] == ["a", "b", "c"]


def test_stopped_again_and_again_it_does_each_line_once(paths):
    inputs, outputs = paths
    entries = [*requests(30), b"garbage", line("bad", stream=True)]
    write_lines(inputs, entries)
    num_runs, num_before = 0, 0
    with engine() as llm:
        while num_before < len(entries):
            run = run_batch(
                llm,
                inputs,
                outputs,
                on_progress=lambda run: run.stop() if run.progress.num_done == 5 else None,
            )
            results = read_lines(outputs)
            assert run.failure is None
            assert len(results) == num_before + run.progress.num_done
            num_runs, num_before = num_runs + 1, len(results)
    assert num_runs > 2
    texts = {name: text_in(r) for name, r in by_id(results).items() if r["response"]}
    assert texts == {entry["custom_id"]: expected_text(entry) for entry in entries[:30]}
    assert {name for name in by_id(results) if name not in texts} == {None, "bad"}


def test_what_was_an_error_is_asked_again_when_that_is_wished(paths):
    inputs, outputs = paths
    write_lines(inputs, [line("a"), line("b", max_tokens=MAX_LEN * 2, prompt="a" * MAX_LEN)])
    with engine() as llm:
        run_batch(llm, inputs, outputs)
        write_lines(inputs, [line("a"), line("b")])
        with pytest.raises(InvalidParameter, match=r"'b', whose request .*--retry-errors"):
            run_batch(llm, inputs, outputs)
        assert run_batch(llm, inputs, outputs, retry_errors=True).progress.num_done == 1
    assert {r["custom_id"]: text_in(r) for r in read_lines(outputs)} == {
        "a": expected_text(line("a")),
        "b": expected_text(line("b")),
    }
    assert len(read_lines(outputs)) == 2


@pytest.mark.parametrize(
    "mended", [[line("a"), line("b")], [line("b"), line("a")], [line("b")]], ids=len
)
def test_a_line_that_was_none_may_be_mended_moved_or_left_out(paths, mended):
    inputs, outputs = paths
    write_lines(inputs, [b'{"custom_id": "a"', line("b")])
    with engine() as llm:
        run_batch(llm, inputs, outputs)
        assert len(read_lines(outputs)) == 2
        write_lines(inputs, mended)
        with pytest.raises(InvalidParameter, match="--retry-errors asks again"):
            run_batch(llm, inputs, outputs)
        assert run_batch(llm, inputs, outputs, retry_errors=True).failure is None
    assert {r["custom_id"]: text_in(r) for r in read_lines(outputs)} == {
        entry["custom_id"]: expected_text(entry) for entry in mended
    }


def test_a_line_that_was_changed_since_is_named_and_the_results_stay(paths):
    inputs, outputs = paths
    write_lines(inputs, [line("a"), line("b")])
    with engine() as llm:
        run_batch(llm, inputs, outputs)
        before = outputs.read_bytes()
        for flags in ({}, {"retry_errors": True}):
            write_lines(inputs, [line("a", prompt="ab"), line("b"), line("c")])
            with pytest.raises(InvalidParameter, match=r"custom_id 'a', whose request in .*chang"):
                run_batch(llm, inputs, outputs, **flags)
            assert outputs.read_bytes() == before
        write_lines(inputs, [line("c"), line("b"), line("a")])  # elsewhere, and one more
        assert run_batch(llm, inputs, outputs).progress.num_done == 1
        assert outputs.read_bytes().startswith(before)


def test_results_of_earlier_versions_are_gone_on_with(paths):
    inputs, outputs = paths
    write_lines(inputs, [line("a"), line("b")])
    with engine() as llm:
        run_batch(llm, inputs, outputs)
        earlier = [json.loads(raw) for raw in outputs.read_bytes().splitlines()]
        for result in earlier:
            result["id"] = result["id"].rpartition("_")[0]
            assert len(result["id"]) == len("batch_req_") + 32
        write_lines(outputs, earlier)
        before = outputs.read_bytes()
        write_lines(inputs, [line("a", prompt="ab"), line("b"), line("c")])
        assert run_batch(llm, inputs, outputs).progress.num_done == 1
        assert outputs.read_bytes().startswith(before)


def test_a_result_that_cannot_be_written_ends_the_run_and_the_next_goes_on(paths, monkeypatch):
    inputs, outputs = paths
    entries = requests(20)
    write_lines(inputs, entries)
    append, left = Ledger.append, [7]

    def full(ledger, raw):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        append(ledger, raw)

    with engine() as llm:
        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "append", full)
            run = run_batch(llm, inputs, outputs)
        assert isinstance(run.failure, OSError)
        assert run.progress.num_done == len(read_lines(outputs)) == 7
        run = run_batch(llm, inputs, outputs)
        assert run.failure is None
        assert run.progress.num_done == 13
    assert {r["custom_id"]: text_in(r) for r in read_lines(outputs)} == {
        entry["custom_id"]: expected_text(entry) for entry in entries
    }


def test_a_disk_that_does_not_sync_ends_the_run(paths, monkeypatch):
    def fail(ledger):
        raise OSError(5, "Input/output error")

    inputs, outputs = paths
    write_lines(inputs, requests(5))
    monkeypatch.setattr(Ledger, "sync", fail)
    with engine() as llm:
        run = run_batch(llm, inputs, outputs)
    assert isinstance(run.failure, OSError)
    assert all(text_in(result) for result in read_lines(outputs))


def test_a_request_of_ours_that_fails_is_a_result_and_no_more(paths, monkeypatch):
    answer = run_module.answer

    async def failing(frontend, ask):
        if ask.asks[0].prompt == "abc":
            raise ZeroDivisionError
        return await answer(frontend, ask)

    monkeypatch.setattr(run_module, "answer", failing)
    inputs, outputs = paths
    write_lines(inputs, [line("a"), line("b", prompt="b")])
    with engine() as llm:
        run = run_batch(llm, inputs, outputs)
    results = by_id(read_lines(outputs))
    assert run.failure is None
    assert results["a"]["response"]["status_code"] == 500
    message = results["a"]["response"]["body"]["error"]["message"]
    assert message == "internal error (ZeroDivisionError)"
    assert text_in(results["b"]) == expected_text(line("b", prompt="b"))


def test_a_request_that_a_failing_device_gave_up_is_an_error_that_can_be_retried(
    paths, monkeypatch
):
    inputs, outputs = paths
    entries = requests(3)
    write_lines(inputs, entries)
    with engine() as llm:
        launch = llm.engine.runner.launch

        def launch_all_but_one(plan):
            if any(admission.prompt.tolist() == [0, 0, 1] for admission in plan.admissions):
                raise StepFailed("the device is ill")
            return launch(plan)

        monkeypatch.setattr(llm.engine.runner, "launch", launch_all_but_one)
        run = run_batch(llm, inputs, outputs)
        assert run.failure is None
        statuses = {r["custom_id"]: r["response"]["status_code"] for r in read_lines(outputs)}
        assert statuses == {"request-0": 200, "request-1": 500, "request-2": 200}
        assert run.progress.num_failed == 1
        monkeypatch.undo()
        assert run_batch(llm, inputs, outputs, retry_errors=True).failure is None
    assert {r["custom_id"]: text_in(r) for r in read_lines(outputs)} == {
        entry["custom_id"]: expected_text(entry) for entry in entries
    }


def test_an_engine_that_ends_leaves_no_false_result(paths, caplog):
    inputs, outputs = paths
    entries = requests(20)
    write_lines(inputs, entries)
    with engine() as llm:
        faulty = llm.engine.runner = FaultyRunner(llm.engine.runner)

        def break_down(run):
            if run.progress.num_done == 6:
                faulty.fail_always = StepFailed("the device is gone")

        run = run_batch(llm, inputs, outputs, on_progress=break_down)
        assert llm.engine.is_closed
    assert isinstance(run.failure, StepFailed | EngineClosed)
    done = read_lines(outputs)
    assert 6 <= len(done) < 20
    assert all(result["response"]["status_code"] == 200 for result in done)
    with engine() as llm:
        assert run_batch(llm, inputs, outputs).progress.num_done == 20 - len(done)
    assert {r["custom_id"]: text_in(r) for r in read_lines(outputs)} == {
        entry["custom_id"]: expected_text(entry) for entry in entries
    }


def test_an_engine_that_is_closed_leaves_no_false_result(paths):
    inputs, outputs = paths
    write_lines(inputs, requests(20))

    def close(run):
        if run.progress.num_done == 3:
            asyncio.get_running_loop().run_in_executor(None, llm.engine.close)

    with engine() as llm:
        run = run_batch(llm, inputs, outputs, on_progress=close)
    assert run.failure is not None
    assert all(result["response"]["status_code"] == 200 for result in read_lines(outputs))


def test_a_file_that_cannot_be_read_to_its_end_leaves_nothing_under_way(paths, monkeypatch):
    inputs, outputs = paths
    write_lines(inputs, requests(20))
    with engine() as llm:
        read_line = run_module.Source.__iter__

        def broken(source):
            for each in read_line(source):
                if each.number == 9 and outputs.exists() and outputs.stat().st_size:
                    raise OSError(5, "Input/output error")
                yield each

        monkeypatch.setattr(run_module.Source, "__iter__", broken)
        with pytest.raises(OSError, match="Input/output"):
            run_batch(llm, inputs, outputs, max_sequences=2)
    assert all(text_in(json.loads(raw)) for raw in outputs.read_bytes().splitlines())
