"""Guides compiled and matched, in a vocabulary of bytes and a few longer tokens."""

import json
import random
import threading

import pytest

from jaxinfer.bits import unpack_ids
from jaxinfer.errors import CapacityError, EngineClosed, InvalidParameter, UnsatisfiableGuide
from jaxinfer.guides import GuideCompiler, compiler
from jaxinfer.guides.lark import MAX_GBNF_BYTES, lark_of, needs_trial
from jaxinfer.guides.trial import why_unfit
from jaxinfer.sampling_params import RequestLimits
from jaxinfer.structured_outputs import Guide, StructuredOutputsParams

WORDS = [b"true", b'{"', b'":', b" the", b"abc", "é".encode()]
END, PAD = 256 + len(WORDS), 256 + len(WORDS) + 1
#: The logits are wider than the tokenizer.
VOCAB = PAD + 5

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "string", "maxLength": 3}},
    "required": ["a"],
    "additionalProperties": False,
}


class ByteTokenizer:
    """Every byte is a token, besides a few words, and one that ends a text and spells one."""

    def token_bytes(self, token_id: int) -> bytes:
        if token_id < 256:
            return bytes([token_id])
        return [*WORDS, b"b"][token_id - 256] if token_id < PAD else b""

    def is_special(self, token_id: int) -> bool:
        return token_id == END


@pytest.fixture
def guides():
    guides = GuideCompiler(ByteTokenizer(), VOCAB, ())
    yield guides
    guides.close()


def compiled(guides: GuideCompiler, **params):
    return guides.compile(StructuredOutputsParams(**params).guide)


def matches(guide, text: str) -> bool:
    """Whether a guide allows a text byte by byte, and the text may end."""
    matcher, tokens = guide.matcher(), []
    for byte in text.encode():
        if byte not in unpack_ids(matcher.next_ids()):
            return False
        tokens.append(byte)
        matcher.follow(tokens)
    return matcher.is_accepting


@pytest.mark.parametrize(
    ("params", "right", "wrong"),
    [
        ({"regex": "(a*)*b"}, ["b", "aaab"], ["", "a", "ba"]),
        ({"regex": "a/b\n\\d+é"}, ["a/b\n12é"], ["a/b\nxé"]),
        ({"choice": ["yes", "yes!", 'a "b"\n', "🙂"]}, ["yes", "yes!", 'a "b"\n', "🙂"], ["y"]),
        ({"grammar": 'start: "(" start ")" | "x"'}, ["x", "((x))"], ["((x)", "()"]),
        ({"grammar": 'root ::= "a" tail*\ntail ::= [0-9] "b"'}, ["a", "a1b2b"], ["1b"]),
        ({"json": SCHEMA}, ['{"a":1}', '{\n  "a": -1,\n  "b": "abc"\n}'], ['{"b":""}', "{}"]),
        ({"json": json.dumps(SCHEMA)}, ['{"a":1}'], ['{"a":"1"}', '{"a":1,"b":"abcd"}']),
        ({"json": "true"}, ["[1]", '{"x": null}'], ["{", "nul"]),
        ({"json": SCHEMA, "disable_any_whitespace": True}, ['{"a":1}'], ['{"a": 1}']),
        ({"json": {"type": "object"}}, ["{}", '{"a": [1]}'], ['{"a":' + " " * 41 + "1}"]),
        ({"json_object": True}, ["{}", '{"a": {"b": true}}'], ["[]", "1"]),
        (
            {"json": {"type": "object", "properties": {"next": {"$ref": "#"}}}},
            ['{"next": {"next": {}}}'],
            ['{"next": 1}'],
        ),
    ],
    ids=str,
)
def test_texts_that_match_are_allowed_and_others_are_not(guides, params, right, wrong):
    guide = compiled(guides, **params)
    assert all(matches(guide, text) for text in right)
    assert not any(matches(guide, text) for text in wrong)


def test_every_token_that_spells_a_part_is_allowed_and_nothing_else(guides):
    matcher = compiled(guides, choice=["abcd", "true"]).matcher()
    longer = {256 + WORDS.index(b"true"), 256 + WORDS.index(b"abc")}
    assert set(unpack_ids(matcher.next_ids())) == {*b"at", *longer}
    matcher.follow([256 + WORDS.index(b"abc")])
    assert set(unpack_ids(matcher.next_ids())) == set(b"d")
    assert not matcher.is_complete
    matcher.follow([256 + WORDS.index(b"abc"), ord("d")])
    assert matcher.is_complete
    assert not matcher.next_ids().any()


def test_special_tokens_and_ids_without_a_token_are_part_of_no_text(guides):
    ids = set(unpack_ids(compiled(guides, regex="(?s:.*)").matcher().next_ids()))
    assert not ids & set(range(END, VOCAB))
    assert ord("b") in ids


def test_each_text_has_a_matcher_of_its_own(guides):
    guide = compiled(guides, regex="ab|cd")
    one, two = guide.matcher(), guide.matcher()
    one.follow(list(b"a"))
    assert set(unpack_ids(one.next_ids())) == set(b"b")
    assert set(unpack_ids(two.next_ids())) == set(b"ac")


def test_a_text_that_does_not_match_is_an_error(guides):
    with pytest.raises(UnsatisfiableGuide, match="after 0 tokens"):
        compiled(guides, regex="ab").matcher().follow(list(b"b"))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"regex": "("}, "unclosed group"),
        ({"regex": "(?=a)b"}, "look-around"),
        ({"regex": "(" * 10_000 + "a" + ")" * 10_000}, "cannot be used"),
        ({"grammar": "start: foo"}, "unknown name"),
        ({"grammar": "start: " + "(" * 5000 + '"a"' + ")" * 5000}, "too deeply nested"),
        ({"grammar": "nonsense"}, "neither a grammar in Lark's syntax"),
        ({"grammar": "root ::= " + "(" * 3000}, "neither a grammar in Lark's syntax"),
        ({"grammar": "x" * (MAX_GBNF_BYTES + 1)}, "at most 16384 are allowed there"),
        ({"json": {"type": "banana"}}, "banana"),
        ({"json": {"type": "string", "pattern": "("}}, "unclosed group"),
        ({"json": {"$ref": "http://localhost/x.json"}}, "not present in a registry"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_compiled_is_refused_in_a_short_text(guides, params, message):
    with pytest.raises(InvalidParameter, match=message) as error:
        compiled(guides, **params)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    "params",
    [
        {"regex": r"[^\s\S]"},
        {"regex": "a{0}"},
        {"grammar": "start: a\na: b\nb: a"},
        {"json": "false"},
        {"json": {"enum": []}},
        {"json": {"type": "string", "minLength": 5, "maxLength": 2}},
        {"json": {"$ref": "#"}},
        {"json": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
         | {"$ref": "#/$defs/a"}},
    ],
    ids=str,
)  # fmt: skip
def test_a_guide_that_no_text_matches_is_an_error_of_its_own(guides, params):
    with pytest.raises(UnsatisfiableGuide, match=r"structured_outputs\.\w+ = "):
        compiled(guides, **params)


def test_a_guide_is_compiled_once_while_it_is_kept_and_a_refusal_is_not_kept(guides, monkeypatch):
    monkeypatch.setattr(compiler, "NUM_KEPT", 2)
    a, b, c = (Guide("regex", letter) for letter in "abc")
    first = guides.compile(a)
    guides.compile(b)
    assert guides.compile(a) is first
    guides.compile(c)
    assert guides.compile(a) is first
    again = guides.submit(b)
    assert again.result() is not None
    for _ in range(2):
        with pytest.raises(UnsatisfiableGuide):
            guides.compile(Guide("regex", "a{0}"))


def test_what_the_librarys_own_limits_do_not_see_is_tried_out_in_another_process():
    """In this one it would take minutes, and gigabytes."""
    hostile = StructuredOutputsParams(json={"allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}]})
    assert needs_trial(hostile.guide)
    assert "it takes more than 2 s" in str(why_unfit(lark_of(hostile.guide), 2.0))
    spelled = StructuredOutputsParams(json='{"multiple\\u004ff": 3}')
    assert needs_trial(spelled.guide)
    assert not needs_trial(StructuredOutputsParams(json=SCHEMA).guide)


def test_what_would_overflow_the_stack_ends_another_process():
    """In this one it would be the end of all requests."""
    chain = {f"{i}": {"items": {"$ref": f"#/$defs/{i + 1}"}} for i in range(1500)}
    hostile = StructuredOutputsParams(json={"$ref": "#/$defs/0", "$defs": chain | {"1500": True}})
    assert needs_trial(hostile.guide)
    assert "nests too deeply" in str(why_unfit(lark_of(hostile.guide), 60.0))
    short = StructuredOutputsParams(json={"$ref": "#/$defs/1490", "$defs": chain | {"1500": True}})
    assert why_unfit(lark_of(short.guide), 60.0) is None


def test_what_is_long_is_tried_out():
    """In tens of thousands of such parts the library takes tens of seconds, and gigabytes."""
    assert needs_trial(Guide("regex", "a?" * 30_000))
    assert needs_trial(Guide("json", '{"items":' * 64 + "{}" + "}" * 64))
    assert not needs_trial(Guide("json", '{"items":' * 63 + "{}" + "}" * 63))
    assert not needs_trial(Guide("regex", "a?" * 300))


def test_a_token_whose_successors_take_long_to_tell_is_an_error(guides, monkeypatch):
    monkeypatch.setattr(compiler, "_MAX_STEP_FUEL", 5_000)
    guide = compiled(guides, regex="z{20}" + "a?" * 300)
    with pytest.raises(UnsatisfiableGuide, match="too many expressions"):
        matches(guide, "z" * 20 + "aaa")
    assert matches(compiled(guides, regex="z{20}" + "a?" * 9), "z" * 20 + "aaa")


def wide(num_optional: int, **more) -> dict:
    return {"type": "object", "properties": {f"k{i}": True for i in range(num_optional)}} | more


@pytest.mark.parametrize(
    "schema",
    [
        wide(600),
        wide(600, additionalProperties=False),
        {"type": "object", "properties": {"a": wide(600)}, "required": ["a"]},
        {"type": "array", "items": wide(600)},
        {"anyOf": [wide(20) | {"title": f"{number}"} for number in range(40)]},
    ],
    ids=lambda schema: str(schema)[:20] + str(schema)[-40:],
)
def test_a_schema_that_is_too_wide_is_refused_before_a_text_is_begun(guides, schema):
    with pytest.raises(
        InvalidParameter, match=r"at most 2000 are allowed; .*: require some"
    ) as error:
        compiled(guides, json=schema)
    assert str(error.value).startswith("structured_outputs.json = ")


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (wide(450), '{"k7": 1, "k449": [2], "other": 3}'),
        (wide(450, additionalProperties=False), '{"k7": 1, "k449": [2]}'),
        (wide(30, required=[f"k{i}" for i in range(30)]), None),
        (wide(1500, required=[f"k{i}" for i in range(1500)]), None),
    ],
    ids=["open", "closed", "all required", "many, all required"],
)
def test_a_schema_that_is_just_not_too_wide_is_served(guides, schema, text):
    text = text or json.dumps(dict.fromkeys(schema["properties"], 0))
    assert matches(compiled(guides, json=schema), text)


def test_a_grammar_whose_texts_soon_take_long_is_refused():
    """Each of its tokens would take a second or more, in which no other request has one."""
    rules = "".join(f'a{i}: "x" | "x" start\n' for i in range(400))
    hostile = Guide("grammar", f"start: {' | '.join(f'a{i}' for i in range(400))}\n{rules}")
    assert needs_trial(hostile)
    assert why_unfit(lark_of(hostile), 60.0) is not None


def test_it_is_tried_out_with_the_librarys_version_that_is_used_here(monkeypatch, tmp_path):
    (tmp_path / "llguidance.py").write_text("raise SystemExit(3)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert why_unfit('start: "a"', 60.0) is not None


@pytest.mark.parametrize("lark", ['start: "a"', "start: ("])
def test_what_is_quick_to_refuse_is_fit_too(lark):
    assert why_unfit(lark, 60.0) is None


class Held:
    """The compilation of every guide takes as long as a test wishes."""

    def __init__(self, monkeypatch):
        self.begun, self.go_on = threading.Semaphore(0), threading.Event()
        monkeypatch.setattr(compiler, "lark_of", self._lark_of)

    def _lark_of(self, guide):
        self.begun.release()
        assert self.go_on.wait(60)
        return 'start: "a"\n%llguidance {"no_forcing": true}'


def test_as_deep_a_schema_as_limits_can_allow_is_compiled(guides):
    schema = '{"items":' * 119 + "{}" + "}" * 119
    limits = RequestLimits(max_schema_nesting=120)
    guides.compile(limits.guide_of(StructuredOutputsParams(json=schema)))


def test_few_guides_are_compiled_at_once_and_few_wait(guides, monkeypatch):
    held = Held(monkeypatch)
    monkeypatch.setattr(compiler, "MAX_WAITING", 3)
    futures = [guides.submit(Guide("regex", str(number))) for number in range(5)]
    for _ in range(compiler.NUM_THREADS):
        held.begun.acquire()
    assert sum(future.running() for future in futures) == compiler.NUM_THREADS
    assert guides.submit(Guide("regex", "0")) is futures[0]
    with pytest.raises(CapacityError, match="5 guides are being compiled"):
        guides.submit(Guide("regex", "5"))
    held.go_on.set()
    for future in futures:
        future.result()
    guides.compile(Guide("regex", "5"))


def test_nobody_waits_longer_than_the_limit(guides, monkeypatch):
    held = Held(monkeypatch)
    guides.seconds = 0.05
    for letter in "ab":
        with pytest.raises(InvalidParameter, match=f"'{letter}' .* not compiled within 0.05 s"):
            guides.compile(Guide("regex", letter))
    with pytest.raises(CapacityError, match="other guides are being compiled"):
        guides.compile(Guide("regex", "c"))
    held.go_on.set()


def test_who_takes_all_states_that_a_guide_may_have_takes_them_from_no_other(guides, monkeypatch):
    monkeypatch.setattr(compiler, "_MAX_LEXER_STATES", 200)
    chance = random.Random(1)
    guide = compiled(guides, regex="[ab]*a[ab]{9}")

    def goes_on(matcher, text: list[int], num_tokens: int) -> list[int]:
        for _ in range(num_tokens):
            assert set(b"ab") <= set(unpack_ids(matcher.next_ids()))
            text.append(chance.choice(b"ab"))
            matcher.follow(text)
        return text

    under_way = guide.matcher()
    text = goes_on(under_way, [], 12)
    with pytest.raises(UnsatisfiableGuide, match="too many states"):
        goes_on(guide.matcher(), [], 1000)
    goes_on(under_way, text, 12)
    for _ in range(30):  # of which all together have more
        goes_on(guide.matcher(), [], 24)
        goes_on(compiled(guides, regex="[ab]*a[ab]{9}").matcher(), [], 24)


def test_a_thread_that_cannot_be_started_takes_nobodys_place(guides, monkeypatch):
    def submit(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(guides._pool, "submit", submit)
    for _ in range(compiler.NUM_THREADS + compiler.MAX_WAITING + 1):
        with pytest.raises(RuntimeError):
            guides.submit(Guide("regex", "b"))


def test_a_closed_compiler_says_so(guides, monkeypatch):
    held = Held(monkeypatch)
    running = [guides.submit(Guide("regex", letter)) for letter in "ab"]
    waiting = guides.submit(Guide("regex", "c"))
    for _ in running:
        held.begun.acquire()
    guides.close()
    assert waiting.cancelled()
    with pytest.raises(EngineClosed):
        guides.compile(Guide("regex", "d"))
    held.go_on.set()
    assert all(future.result() for future in running)


@pytest.mark.parametrize(
    ("wanted", "kind"),
    [({"regex": "a{2"}, InvalidParameter), ({"json": "false"}, UnsatisfiableGuide)],
)
def test_what_was_refused_costs_no_time_for_a_while(wanted, kind, monkeypatch):
    now = [0.0]
    guides = GuideCompiler(ByteTokenizer(), VOCAB, (), clock=lambda: now[0])
    errors, compiles = [], []
    compile_ = guides._compile
    monkeypatch.setattr(guides, "_compile", lambda guide: (compiles.append(guide), compile_(guide)))
    for at in (0.0, 1.0, compiler.REFUSED_SECONDS):
        now[0] = at
        with pytest.raises(kind) as caught:
            compiled(guides, **wanted)
        errors.append(caught.value)
    assert len(compiles) == 2
    assert len({(type(error), str(error)) for error in errors}) == 1
    assert len(set(map(id, errors))) == 3
    guides.close()


def test_so_many_refusals_are_remembered_and_what_can_be_used_is_beside_them(guides):
    for number in range(compiler.NUM_REFUSED + 3):
        with pytest.raises(InvalidParameter):
            compiled(guides, regex=f"{number}(")
    assert len(guides._refused) == compiler.NUM_REFUSED
    assert matches(compiled(guides, regex="ab"), "ab")
