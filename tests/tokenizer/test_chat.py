"""Chat templates render as in transformers, and a hostile one is stopped."""

from datetime import datetime

import pytest

from jaxinfer.errors import ChatTemplateError
from jaxinfer.sampling_params import RequestLimits
from jaxinfer.tokenizer import chat, load_tokenizer

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
CHATML = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def render(template: str, messages=MESSAGES, **variables) -> str:
    return chat.ChatTemplates({"default": template}, {"bos_token": "<s>"}).render(
        messages, add_generation_prompt=True, **variables
    )


def test_a_conversation_renders_with_its_generation_prompt(byte_level_metadata):
    metadata = byte_level_metadata | {"tokenizer.chat_template": CHATML}
    tokenizer = load_tokenizer("tiny.gguf", metadata=metadata)
    turns = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    assert tokenizer.chat_template == CHATML
    prompt = tokenizer.apply_chat_template(MESSAGES)
    assert prompt == turns + "<|im_start|>assistant\n"
    assert tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=False) == turns
    assert tokenizer.encode(prompt)[0] == 1


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ bos_token }}{{ unknown }}{{ messages | length }}", "<s>2"),
        ("  {% if true %}\n  x\n  {% endif %}\ny", "  x\ny"),
        ("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "012"),
        ("{% generation %}{{ messages[1].content }}{% endgeneration %}!", "Hi!"),
        ("{{ {'a': '<é>'} | tojson }}", '{"a": "<é>"}'),
        ("{{ {'b': 1, 'a': [2]} | tojson(indent=1) }}", '{\n "b": 1,\n "a": [\n  2\n ]\n}'),
        ("{{ 'a' ~ 1 ~ none ~ 'b' }}", "a1Noneb"),
        ("{% macro f(function) %}{{ function }}{% endmacro %}{{ f(function='x') }}", "x"),
        ("{% set ns = namespace(n=0) %}{% set ns.n = ns.n + 2 * 3 %}{{ ns.n % 4 }}", "2"),
        ("{{ '%s-%5.1f' % ('a', 2) }}{{ '{:>3}'.format(1) }}{{ '%d' | format(7) }}", "a-  2.0  17"),
    ],
)
def test_the_language_of_templates_is_that_of_transformers(template, expected):
    assert render(template) == expected


def test_the_time_is_available():
    assert render("{{ strftime_now('%Y') }}") in {str(datetime.now().year + i) for i in (-1, 0)}


def test_more_variables_reach_the_template_and_may_replace_the_usual_ones():
    assert render("{{ bos_token }}{{ enable_thinking }}", enable_thinking=False) == "<s>False"
    assert render("{{ bos_token }}", bos_token="") == ""


def test_templates_are_chosen_by_name_text_or_the_presence_of_tools():
    templates = chat.ChatTemplates({"default": "D", "tool_use": "T", "rag": "R"}, {})
    assert templates.render(MESSAGES, add_generation_prompt=True) == "D"
    assert templates.render(MESSAGES, add_generation_prompt=True, tools=[{}]) == "T"
    assert templates.render(MESSAGES, "rag", add_generation_prompt=True) == "R"
    assert templates.render(MESSAGES, "my {{ 'own' }}", add_generation_prompt=True) == "my own"


def test_a_model_without_a_template_says_what_to_do(byte_level):
    assert byte_level.chat_template is None
    with pytest.raises(ChatTemplateError, match="no default chat template; pass chat_template="):
        byte_level.apply_chat_template(MESSAGES)


def test_a_model_with_named_templates_only_lists_them():
    templates = chat.ChatTemplates({"rag": "R"}, {})
    with pytest.raises(ChatTemplateError, match=r"no default chat template \(it has rag\)"):
        templates.render(MESSAGES, add_generation_prompt=True)


@pytest.mark.parametrize(
    "messages", [[], {}, None, "Hi", ["Hi"], [{}], [{"role": 1}], [{"content": "Hi"}]]
)
def test_messages_of_a_wrong_form_are_refused(messages):
    with pytest.raises(ChatTemplateError, match=r"messages(\[0\])? must be a"):
        render("never rendered", messages)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ (messages | attr('__class__')).mro() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({}) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
    ],
)
def test_the_sandbox_lets_nothing_out(template):
    with pytest.raises(
        ChatTemplateError, match=r"failed with (SecurityError|UndefinedError|TypeErr)"
    ):
        render(template)


GROWTH = "{% set ns = namespace(x='ab') %}{% for _ in range(60) %}GROW{% endfor %}"


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 10**9 }}",
        "{% set x = [1] * 10**9 %}",
        "{{ 10 ** 10000000000 }}",
        "{{ 'x' | center(10**9) }}",
        "{{ 'x'.ljust(10**9) }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%*d' | format(999999999, 1) }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ '{:{}}'.format(1, '999999999') }}",
        "{% for _ in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
        GROWTH.replace("GROW", "{% set ns.x = ns.x ~ ns.x %}"),
        GROWTH.replace("GROW", "{% set ns.x = ns.x + ns.x %}"),
        GROWTH.replace("GROW", "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}"),
        GROWTH.replace("GROW", "{% set ns.x = 2 ** 60 %}{% set ns.x = ns.x ** 60 %}"),
    ],
)
def test_a_template_that_grows_without_end_is_stopped(template):
    with pytest.raises(ChatTemplateError, match="makes more than"):
        render(template)


def test_how_long_a_conversation_may_become_can_be_set():
    limits = RequestLimits(max_template_characters=7)
    assert render("{{ 'a' * 7 }}", template_limits=limits) == "a" * 7
    for template in ("{{ 'a' * 8 }}", "{{ 'abcd' }}{{ 'abcd' }}"):
        with pytest.raises(ChatTemplateError, match=r"more than 7 .*max_template_characters"):
            render(template, template_limits=limits)
    assert render("{{ 'a' * 8 }}") == "a" * 8


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for a in s %}{% for b in s %}{% for c in s %}{% endfor %}{% endfor %}{% endfor %}",
    ],
)
def test_a_template_that_never_ends_is_stopped(template):
    limits = RequestLimits(max_template_seconds=0.05)
    with pytest.raises(ChatTemplateError, match=r"runs for more than 0\.05 s"):
        render(template, s="x" * 10_000, template_limits=limits)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('no system turn') }}", "refuses these messages: no system turn"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ nothing.more }}", "UndefinedError: 'nothing' is undefined"),
        ("{{ messages + 'a' }}", "TypeError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
    ],
)
def test_a_template_that_fails_says_why(template, reason):
    with pytest.raises(ChatTemplateError, match=reason):
        render(template)
