"""Chat templates: programs that came with a checkpoint, rendered where they can do no harm.

They are written for the environment of Hugging Face's transformers, which this one repeats. On top
of Jinja's sandbox (no private attributes, nothing mutable) stand bounds on time and size: every
loop iteration, macro, call and filter looks at the clock, and no value may grow beyond a limit.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from jaxinfer.errors import ChatTemplateError
from jaxinfer.sampling_params import RequestLimits

# A width of more digits than any table needs, one taken from an argument, or "%*d".
_LARGE_WIDTH = re.compile(r"\d{7}|:[^}]*\{|%[^a-zA-Z%]*\*")


@dataclass(frozen=True)
class _Bounds:
    """Of one rendering. ``characters``: of what it makes, and of any value on the way to it.
    ``seconds``: of processor time, on whose clock it ends at ``deadline``."""

    characters: int
    seconds: float
    deadline: float


_bounds: ContextVar[_Bounds] = ContextVar("bounds")


class ChatTemplates:
    """The chat templates of one tokenizer, by name."""

    def __init__(self, templates: Mapping[str, str], variables: Mapping[str, Any]):
        """
        Args:
            templates: Jinja texts; ``"default"`` is used where no other is named, and
                ``"tool_use"`` where there are tools.
            variables: seen by every template, such as ``bos_token``.
        """
        self._templates = dict(templates)
        self._variables = dict(variables)

    @property
    def default(self) -> str | None:
        """The text of the default template, or None."""
        return self._templates.get("default")

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        template: str | None = None,
        *,
        add_generation_prompt: bool,
        template_limits: RequestLimits | None = None,
        **variables: Any,
    ) -> str:
        """Renders with the template of that name or text; see ``Tokenizer.apply_chat_template``."""
        _check_messages(messages)
        source = self._source(template, has_tools=bool(variables.get("tools")))
        conversation = {"messages": messages, "add_generation_prompt": add_generation_prompt}
        given = self._variables | variables | conversation
        token = _bounds.set(_bounds_of(template_limits or RequestLimits()))
        try:
            return _join(_compile(source).generate(given))
        except ChatTemplateError:
            raise
        except Exception as error:  # a template is a program: it can fail in every way there is
            raise ChatTemplateError(
                f"the chat template failed with {type(error).__name__}: {error}"
            ) from error
        finally:
            _bounds.reset(token)

    def _source(self, template: str | None, has_tools: bool) -> str:
        if template is None:
            template = "tool_use" if has_tools and "tool_use" in self._templates else "default"
            if template not in self._templates:
                named = f" (it has {', '.join(sorted(self._templates))})" if self._templates else ""
                raise ChatTemplateError(
                    f"the model has no default chat template{named}; pass chat_template=, or use a "
                    "text prompt: base models are not trained on conversations"
                )
        return self._templates.get(template, template)


def _check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise ChatTemplateError(
            "messages must be a list of {'role': ..., 'content': ...}, not empty"
        )
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ChatTemplateError(
                f"messages[{index}] must be a dict with a str as 'role', not {message!r:.200}"
            )


def _bounds_of(limits: RequestLimits) -> _Bounds:
    seconds = limits.max_template_seconds
    return _Bounds(limits.max_template_characters, seconds, time.thread_time() + seconds)


def _join(parts: Any) -> str:
    rendered = []
    room = _bounds.get().characters
    for part in parts:
        rendered.append(part)
        room -= len(part)
        if room < 0:
            _refuse_size()
    return "".join(rendered)


@lru_cache(maxsize=64)
def _compile(source: str) -> jinja2.Template:
    return _Environment().from_string(source)


def _refuse_size() -> NoReturn:
    most = _bounds.get().characters
    raise ChatTemplateError(
        f"the chat template makes more than {most} characters (max_template_characters)"
    )


def _check_time() -> None:
    bounds = _bounds.get()
    if time.thread_time() > bounds.deadline:
        raise ChatTemplateError(
            f"the chat template runs for more than {bounds.seconds} s (max_template_seconds)"
        )


def _checked(value: Any) -> Any:
    """The value, if neither a text, a list nor a number too large."""
    is_large_number = isinstance(value, int) and value.bit_length() > 1024
    is_sized = isinstance(value, str | list | tuple)
    if is_large_number or (is_sized and len(value) > _bounds.get().characters):
        _refuse_size()
    return value


def _checks_arguments(function: Callable[..., Any]) -> Callable[..., Any]:
    """Refuses widths and counts too large before they are allocated, and results after."""

    @wraps(function)  # keeps the marks of jinja2.pass_context and the like
    def checked(*args: Any, **kwargs: Any) -> Any:
        _check_call(args, kwargs)
        return _checked(function(*args, **kwargs))

    return checked


def _length(factor: Any) -> int:
    """How much longer a product becomes by this factor: a count, or a text's length."""
    if isinstance(factor, str | list | tuple):
        return len(factor)
    return factor if isinstance(factor, int) else 1


def _check_call(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    _check_time()
    for value in (*args, *kwargs.values()):
        if isinstance(value, int) and abs(value) > _bounds.get().characters:
            _refuse_size()


def _check_widths(pattern: Any) -> None:
    """Refuses a format string that may ask for a text too large."""
    if isinstance(pattern, str) and _LARGE_WIDTH.search(pattern):
        _refuse_size()


def _concatenate(*values: Any) -> str:
    return _checked("".join(map(str, values)))


class _Instrument(NodeTransformer):
    """Puts a look at the clock into every loop and macro, and a bound on every ``~``."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        self.generic_visit(node)
        if isinstance(node, nodes.For | nodes.Macro | nodes.CallBlock):
            node.body.insert(0, nodes.ExprStmt(_environment_call("check_time", [])))
        if isinstance(node, nodes.Concat):
            return _environment_call("concatenate", node.nodes)
        return node


def _environment_call(name: str, arguments: list[nodes.Expr]) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None)


class _Generation(Extension):
    """``{% generation %}`` marks the assistant's tokens for training; here it is its content."""

    tags = {"generation"}  # noqa: RUF012 (declared so by the base class)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox with bounds, and with the names that chat templates use."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])
    check_time = staticmethod(_check_time)
    concatenate = staticmethod(_concatenate)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
            finalize=_checked,
            cache_size=0,
        )
        self.filters["tojson"] = _to_json
        self.filters["format"] = _format
        self.filters = {name: _checks_arguments(each) for name, each in self.filters.items()}
        self.globals.pop("lipsum")
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Instrument().visit(super()._parse(source, name, filename))

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        _check_call(args, kwargs)
        return _checked(super().call(context, function, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_widths(value.__self__)
        return wrapped

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*" and _length(left) * _length(right) > _bounds.get().characters:
            _refuse_size()
        if operator == "%":
            _check_widths(left)
        if operator == "**" and isinstance(right, int) and right > 64:
            _refuse_size()
        return _checked(super().call_binop(context, operator, left, right))


def _format(pattern: str, *values: Any) -> str:
    _check_widths(pattern)
    return pattern % values


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is; Jinja's own filter of this name escapes for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise ChatTemplateError(f"the chat template refuses these messages: {message}")


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
