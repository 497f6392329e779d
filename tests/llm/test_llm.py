"""LLM: outputs in order, nothing begun where one request is wrong, usable after every error."""

import math
import signal
import threading

import jax
import pytest

from jaxinfer import LLM, SamplingParams
from jaxinfer.errors import (
    CapacityError,
    ChatTemplateError,
    EngineClosed,
    InvalidParameter,
    InvalidPrompt,
    ModelNotFound,
    PromptTooLong,
    Unsupported,
)
from jaxinfer.tokenizer import load_tokenizer
from sharding import make_mesh
from tests.llm.tiny_model import MAX_LEN, SETTINGS, VOCAB_SIZE

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


def tokens(outputs):
    return [output.outputs[0].token_ids for output in outputs]


def is_idle(llm):
    return llm.engine.num_unfinished == 0 and llm.engine.num_running == 0


def test_outputs_are_in_the_order_of_the_prompts_and_independent_of_neighbours(llm):
    prompts = ["hello", "a", "some longer prompt, in chunks", "hello"]
    alone = [tokens(llm.generate(prompt, GREEDY, use_tqdm=False))[0] for prompt in prompts]
    together = llm.generate(prompts, GREEDY, use_tqdm=False)
    assert tokens(together) == alone
    assert [output.prompt for output in together] == prompts
    assert all(output.finished and len(output.outputs[0].token_ids) == 6 for output in together)


def test_a_text_and_its_token_ids_are_the_same_prompt(llm):
    ids = llm.get_tokenizer().encode("hello")
    text, given, dict_text = llm.generate(
        ["hello", {"prompt_token_ids": ids}, {"prompt": "hello"}], GREEDY, use_tqdm=False
    )
    assert tokens([text]) == tokens([given]) == tokens([dict_text])
    assert given.prompt is None
    assert given.prompt_token_ids == text.prompt_token_ids == tuple(ids)


def test_each_prompt_has_its_own_parameters(llm):
    params = [SamplingParams(max_tokens=n, ignore_eos=True) for n in (1, 3)]
    outputs = llm.generate(["a", "b"], params, use_tqdm=False)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [1, 3]


def test_a_seed_makes_samples_repeatable_and_n_gives_several(llm):
    params = SamplingParams(n=3, seed=5, max_tokens=6, ignore_eos=True)
    [first], [again] = (llm.generate("x", params, use_tqdm=False) for _ in range(2))
    assert [o.token_ids for o in first.outputs] == [o.token_ids for o in again.outputs]
    assert len({o.token_ids for o in first.outputs}) == 3


def test_no_prompts_are_no_outputs(llm):
    assert llm.generate([], use_tqdm=False) == []


def test_the_stream_adds_up_to_what_generate_returns(llm):
    stream = llm.stream(["hello", "you"], GREEDY)
    events = list(stream)
    assert tokens(stream.outputs) == tokens(llm.generate(["hello", "you"], GREEDY, use_tqdm=False))
    for request_id, output in zip(stream.request_ids, stream.outputs, strict=True):
        pieces = [event.text for event in events if event.request_id == request_id]
        assert "".join(pieces) == output.outputs[0].text
    assert stream.num_finished == 2


@pytest.mark.parametrize(
    ("prompt", "params", "error", "message"),
    [
        ("", {}, InvalidPrompt, "empty"),
        ([], {}, InvalidPrompt, "a prompt must be a str or"),
        (7, {}, InvalidPrompt, "a prompt must be a str or"),
        ({"text": "x"}, {}, InvalidPrompt, "a prompt must be a str or"),
        ({"prompt_token_ids": "abc"}, {}, InvalidPrompt, "must be a list of integers"),
        ({"prompt_token_ids": []}, {}, InvalidPrompt, "empty"),
        ({"prompt_token_ids": [VOCAB_SIZE]}, {}, InvalidPrompt, "from 0 to 263"),
        ({"prompt_token_ids": [-1]}, {}, InvalidPrompt, "from 0 to 263"),
        ({"prompt_token_ids": [2**40]}, {}, InvalidPrompt, "from 0 to 263"),
        ({"prompt_token_ids": [1.5]}, {}, InvalidPrompt, "from 0 to 263"),
        ("\ud800", {}, InvalidPrompt, "not Unicode"),
        ("x" * MAX_LEN, {}, PromptTooLong, "at most 63"),
        ("x", {"temperature": math.nan}, InvalidParameter, "temperature"),
        ("x", {"temperature": -1.0}, InvalidParameter, "temperature"),
        ("x", {"top_p": 0.0}, InvalidParameter, "top_p"),
        ("x", {"top_p": math.inf}, InvalidParameter, "top_p"),
        ("x", {"max_tokens": 0}, InvalidParameter, "max_tokens"),
        ("x", {"min_tokens": 9, "max_tokens": 3}, InvalidParameter, "min_tokens"),
        ("x", {"n": 0}, InvalidParameter, "n = 0"),
        ("x", {"n": 10**9}, InvalidParameter, "n = 1000000000"),
        ("x", {"logprobs": 21}, InvalidParameter, "logprobs"),
        ("x", {"stop": [""]}, InvalidParameter, "stop"),
        ("x", {"stop": ["x"] * 10**5}, InvalidParameter, "stop"),
        ("x", {"logit_bias": {VOCAB_SIZE: 1.0}}, InvalidParameter, "logit_bias"),
        ("x", {"allowed_token_ids": []}, InvalidParameter, "allowed_token_ids"),
    ],
)
def test_one_bad_prompt_raises_before_any_of_the_batch_runs(llm, prompt, params, error, message):
    num_steps = llm.engine.stats.num_computed_tokens
    with pytest.raises(error, match=message):
        llm.generate(["fine", prompt], [GREEDY, SamplingParams(**params)], use_tqdm=False)
    assert is_idle(llm)
    assert llm.engine.stats.num_computed_tokens == num_steps


@pytest.mark.parametrize("params", ["greedy", 1.0, [GREEDY, "greedy"], [GREEDY]])
def test_sampling_params_of_another_form_or_number_are_refused(llm, params):
    with pytest.raises(InvalidParameter, match="sampling_params"):
        llm.generate(["a", "b"], params, use_tqdm=False)


def test_prompts_of_another_form_are_refused(llm):
    with pytest.raises(InvalidPrompt, match="prompts must be"):
        llm.generate(5, GREEDY, use_tqdm=False)


def test_an_interrupt_aborts_everything_and_leaves_the_llm_usable(llm):
    before = tokens(llm.generate("hello", GREEDY, use_tqdm=False))
    stream = llm.stream(["a", "b", "c", "d", "e", "f"], SamplingParams(max_tokens=50))
    events = iter(stream)
    assert [next(events).index for _ in range(5)] == [0] * 5
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    stream.close()
    assert is_idle(llm)
    assert {output.outputs[0].finish_reason for output in stream.outputs} == {"abort"}
    assert tokens(llm.generate("hello", GREEDY, use_tqdm=False)) == before


def test_an_interrupt_during_a_step_comes_after_it_and_generate_cleans_up(llm, monkeypatch):
    read, calls = llm.engine.runner.read, []

    def interrupted(pending):
        calls.append(signal.raise_signal(signal.SIGINT) if len(calls) == 3 else None)
        return read(pending)

    monkeypatch.setattr(llm.engine.runner, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["a", "b"], SamplingParams(max_tokens=50), use_tqdm=False)
    assert is_idle(llm)
    assert len(tokens(llm.generate("a", GREEDY, use_tqdm=False))[0]) == 6


def test_leaving_a_stream_early_and_closing_it_gives_everything_back(llm):
    stream = llm.stream("hello", SamplingParams(max_tokens=50))
    next(iter(stream))
    stream.close()
    stream.close()
    assert is_idle(llm)


def test_a_with_block_closes_the_stream_it_leaves(llm):
    with llm.stream("hello", SamplingParams(max_tokens=50, ignore_eos=True)) as stream:
        for _ in stream:
            break
    assert is_idle(llm)
    assert stream.outputs[0].outputs[0].finish_reason == "abort"


def test_two_threads_share_one_llm(llm):
    prompts = ["first", "second", "third"]
    wanted = tokens(llm.generate(prompts, GREEDY, use_tqdm=False))
    found = {}

    def run(index):
        found[index] = tokens(llm.generate(prompts[index], GREEDY, use_tqdm=False))[0]

    threads = [threading.Thread(target=run, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[index] for index in range(3)] == wanted


def test_chat_is_generate_on_the_rendered_template(llm):
    messages = [{"role": "user", "content": "hi"}]
    [one] = llm.chat(messages, GREEDY, use_tqdm=False)
    [same, other] = llm.chat([messages, [*messages, *messages]], GREEDY, use_tqdm=False)
    assert one.prompt == "user:hi;a:"
    assert other.prompt == "user:hi;user:hi;a:"
    assert tokens([one]) == tokens([same])
    assert tokens([one]) == tokens(llm.generate("user:hi;a:", GREEDY, use_tqdm=False))


@pytest.mark.parametrize("messages", [[], "hi", [{"content": "no role"}], {"role": "user"}])
def test_messages_of_a_wrong_form_are_refused(llm, messages):
    with pytest.raises(ChatTemplateError, match="messages"):
        llm.chat(messages, GREEDY, use_tqdm=False)


def test_the_chat_template_can_be_given(llm):
    [output] = llm.chat(
        [{"role": "user", "content": "hi"}],
        GREEDY,
        use_tqdm=False,
        chat_template="{{ word }}!",
        word="so",
    )
    assert output.prompt == "so!"


def test_use_tqdm_draws_on_standard_error(llm, capsys):
    llm.generate(["a", "b"], GREEDY)
    captured = capsys.readouterr()
    assert "2/2" in captured.err
    assert captured.out == ""


def test_a_request_for_more_than_the_pool_is_refused(tiny_directory):
    with LLM(tiny_directory, **(SETTINGS | {"num_pages": 3})) as small:
        with pytest.raises(InvalidParameter, match="page pool holds 16"):
            small.generate("hello", SamplingParams(max_tokens=40), use_tqdm=False)
        assert len(tokens(small.generate("hello", GREEDY, use_tqdm=False))[0]) == 6


def test_without_a_tokenizer_prompts_are_ids_and_texts_empty(tiny_directory):
    settings = SETTINGS | {"enable_prompt_logprobs": False}
    with LLM(tiny_directory, skip_tokenizer_init=True, **settings) as bare:
        [output] = bare.generate({"prompt_token_ids": [1, 2]}, GREEDY, use_tqdm=False)
        assert len(output.outputs[0].token_ids) == 6
        assert output.outputs[0].text == ""
        with pytest.raises(InvalidPrompt, match="no tokenizer"):
            bare.generate("text", GREEDY, use_tqdm=False)
        with pytest.raises(InvalidParameter, match="without a tokenizer"):
            bare.get_tokenizer()
        with pytest.raises(Unsupported, match="enable_prompt_logprobs=False"):
            bare.score({"prompt_token_ids": [1, 2]}, use_tqdm=False)


def test_after_shutdown_nothing_is_taken(tiny_directory):
    with LLM(tiny_directory, **SETTINGS) as closed:
        stream = closed.stream("hello", GREEDY)
    closed.shutdown()
    assert stream.outputs[0].outputs[0].finish_reason == "abort"
    with pytest.raises(EngineClosed):
        closed.generate("hello", GREEDY, use_tqdm=False)


def test_equal_seeds_make_equal_weights_and_samples(tiny_directory, llm):
    free = SamplingParams(max_tokens=6, ignore_eos=True)
    with LLM(tiny_directory, **SETTINGS) as one, LLM(tiny_directory, **SETTINGS) as two:
        assert tokens(one.generate(["a", "b"], free)) == tokens(two.generate(["a", "b"], free))
        assert tokens(one.generate("hello", GREEDY)) == tokens(llm.generate("hello", GREEDY))


def test_two_devices_generate_what_one_does(tiny_directory, llm, four_devices):
    with LLM(tiny_directory, mesh=make_mesh({"model": 2}), **SETTINGS) as two:
        leaves = jax.tree.leaves(two.engine.runner._params)
        assert len(leaves[0].sharding.device_set) == 2
        assert two.weight_bytes == sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
        assert tokens(two.generate(["hello"], GREEDY)) == tokens(llm.generate(["hello"], GREEDY))


def test_the_phases_of_its_making_are_timed_and_shown(tiny_directory):
    seen = []
    tokenizer = load_tokenizer(tiny_directory)
    with LLM(
        tiny_directory, tokenizer=tokenizer, progress=lambda *args: seen.append(args), **SETTINGS
    ) as llm:
        assert list(llm.startup_seconds) == ["open", "load", "compile", "warm"]
        assert llm.get_tokenizer() is tokenizer
    [total] = {total for phase, _, total in seen if phase == "compile"}
    compiled = [done for phase, done, _ in seen if phase == "compile"]
    assert compiled == sorted(compiled)
    assert set(compiled) == set(range(total + 1))


def test_what_is_compiled_after_its_making_is_counted_and_it_asks_for_nothing(tiny_directory):
    with LLM(tiny_directory, **SETTINGS) as llm:
        llm.generate(["hello", "a"], GREEDY, use_tqdm=False)
        assert llm.num_compiles == 0
        jax.jit(lambda x: 3 * x + 1).lower(2.0).compile()
        assert llm.num_compiles == 1


def test_devices_that_cannot_share_the_kv_heads_are_refused(tiny_directory, four_devices):
    with pytest.raises(InvalidParameter, match="num_kv_heads = 2"):
        LLM(tiny_directory, tensor_parallel_size=4, **SETTINGS)


def test_a_device_that_is_full_while_weights_are_loaded_is_a_capacity_error(
    tiny_directory, monkeypatch
):
    def fill(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr("jaxinfer.llm.opening.random_weights", fill)
    with pytest.raises(CapacityError, match="RESOURCE_EXHAUSTED: Out of memory"):
        LLM(tiny_directory, **SETTINGS)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"quantization": "awq"}, Unsupported, "awq"),
        ({"dtype": "int8"}, InvalidParameter, "dtype"),
        ({"kv_cache_dtype": "int3"}, InvalidParameter, "kv_cache_dtype"),
        ({"max_model_len": 65}, InvalidParameter, "max_model_len = 65"),
        ({"max_model_len": 1}, InvalidParameter, "max_model_len = 1"),
        ({"max_num_seqs": 0}, InvalidParameter, "max_num_seqs"),
        ({"page_size": 0}, InvalidParameter, "page_size"),
        ({"page_size": 24}, InvalidParameter, "page_size = 24 .* 8, 16, 32, 64, 128, 256"),
        ({"max_num_batched_tokens": 2}, InvalidParameter, "max_num_batched_tokens"),
        ({"memory_utilization": 0.0}, InvalidParameter, "memory_utilization"),
        ({"memory_utilization": math.nan}, InvalidParameter, "memory_utilization"),
        ({"memory_utilization": 1e-9}, CapacityError, "weights take .* larger memory_utilization"),
        ({"load_format": "pt"}, InvalidParameter, "load_format"),
        ({"tensor_parallel_size": 0}, InvalidParameter, "tensor_parallel_size"),
        ({"tensor_parallel_size": 99}, InvalidParameter, "99 devices"),
        ({"tensor_parallel_size": 2, "mesh": "any"}, InvalidParameter, "not both"),
        ({"model": "no such model"}, ModelNotFound, "smollm2-135m"),
        ({"model": "no such model", "load_format": "auto"}, ModelNotFound, "no such model"),
    ],
)
def test_what_cannot_be_made_says_why(tiny_directory, settings, error, message):
    with pytest.raises(error, match=message):
        LLM(**({"model": tiny_directory} | SETTINGS | settings))
