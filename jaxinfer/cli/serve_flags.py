"""The flags of ``jaxinfer serve``, each of which a file may set as well.

A section of the file is a group of flags, a key a flag without its dashes in front. All flags are
None where nobody gave them, so that what the command line says wins over the file, and both over
the defaults, which stand where the values are used.
"""

import argparse
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxinfer.cli.arguments import DEFAULT_MODEL, add_model_arguments
from jaxinfer.errors import InvalidParameter
from jaxinfer.presets import find_serve_config
from jaxinfer.sampling_params import RequestLimits

if TYPE_CHECKING:
    from serve.settings import ServeSettings
    from serve.tls import TlsFiles

#: Where a server is not as an ``LLM`` would be.
DEFAULTS = {"model": DEFAULT_MODEL, "max_waiting_requests": 1024, "max_waiting_tokens": 2**20}
#: What limits of requests are of.
_LIMITS = {
    "max_n": "outputs of a prompt",
    "max_stop_strings": "of a request",
    "max_stop_bytes": "of each stop string or bad word",
    "max_bad_words": "of a request",
    "max_token_ids": "in each list of a request: stop, allowed, biased",
    "max_logprobs": "beside each token",
    "max_prompt_logprobs_bytes": "of a request, in the host's memory",
    "max_prompts": "of a body over HTTP",
    "max_guide_bytes": "of a schema, a regex, a grammar, or all choices",
    "max_schema_nesting": "levels of a JSON schema",
    "max_guide_seconds": "until a guide is compiled",
    "max_template_seconds": "of a processor to render a conversation",
    "max_template_characters": "of a rendered conversation",
}
#: Where a server that serves HTTP does so.
HTTP_PORT = 8000


def add_flags(parser: argparse.ArgumentParser) -> None:
    """All of them, in groups."""
    parser.add_argument("--config", metavar="FILE|NAME", help="a file, or a name of configs/serve")
    group = parser.add_argument_group("server")
    server = _adder(group)
    server("--host", None, "127.0.0.1", "")
    server("--grpc-port", int, 50051, "0 takes a free one")
    server("--http-port", int, HTTP_PORT, "of the OpenAI API; 0 takes a free one")
    group.add_argument("--no-http", action="store_true", help="gRPC alone")
    server("--http-patience", float, 60.0, "seconds for a client to send a request or take bytes")
    server("--http-keep-alive", float, 30.0, "seconds that a connection may have nothing to do")
    group.add_argument("--tokenizer-info", action="store_true", help="serve /tokenizer_info, too")
    server("--tls-certificate", Path, None, "PEM; read again when it changes")
    server("--tls-key", Path, None, "its key, PEM")
    server("--tls-client-ca", Path, None, "who signs clients' certificates (mTLS)")
    server("--auth-tokens-file", Path, None, "bearer tokens, one a line, of which calls name one")
    server("--served-model-name", None, None, "what clients call it (default: --model)")
    server("--max-connection-idle", float, 600.0, "seconds without a call, then it ends (gRPC)")
    server("--max-connection-age", float, None, "seconds, then it is to be made anew; else never")
    server("--max-connection-grace", float, 60.0, "seconds that its calls may then go on")
    server("--min-ping-interval-ms", int, 10_000, "who pings more often is sent away")
    server("--deadline-margin", float, 0.1, "seconds before a deadline at which outputs end")
    server("--step-patience", float, 60.0, "seconds for a step, then health says no")
    server("--hang-patience", float, 600.0, "seconds for it after that, then the server ends")
    server("--drain-seconds", float, 30.0, "for what is under way at the end")
    server("--stop-grace-seconds", float, 1.0, "for connections after that")
    server("--otlp-endpoint", None, None, "http://host:port of a collector of traces; else none")
    admin = _adder(parser.add_argument_group("admin"))
    admin("--admin-port", int, None, "for operators: drain, weights, sleep, profiles; else none")
    admin("--admin-host", None, "127.0.0.1", "")
    admin(
        "--admin-tokens-file",
        Path,
        None,
        "bearer tokens of operators; without, those of clients, on this machine",
    )
    admin("--weights-dir", Path, None, "below it lie weights that they may take")
    admin("--profile-dir", Path, None, "below it profiles are written")
    limits = _adder(parser.add_argument_group("limits"))
    limits("--max-waiting-requests", int, 1024, "in the queue")
    limits("--max-waiting-tokens", int, 2**20, "of their prompts")
    limits("--max-connections", int, 4096, "of each port")
    limits("--max-calls", int, 8192, "over gRPC at once; of one connection a quarter")
    limits("--max-message-bytes", int, 64 * 2**20, "of a message")
    limits("--max-metadata-bytes", int, 16 * 2**10, "of a call's metadata")
    limits("--max-pending-tokens", int, 65_536, "of a stream, waiting for their reader")
    for each in fields(RequestLimits):
        limits(_flag(each.name), type(each.default), each.default, _LIMITS[each.name])
    add_model_arguments(parser)
    parser.set_defaults(**dict.fromkeys(action.dest for action in _keys(parser).values()))


def fill_from_file(args: argparse.Namespace) -> None:
    """Gives flags that the command line left out the values of ``--config``, else ``DEFAULTS``.

    Raises:
        InvalidParameter: an unknown section or key, a value of another type or out of its range;
            the message names file, key, value, and what is allowed.
        OSError: the file cannot be read.
    """
    if args.config is not None:
        path = find_serve_config(args.config)
        for action, value in _read(path):
            if getattr(args, action.dest) is None:
                setattr(args, action.dest, value)
    for name, value in DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def serve_settings(args: argparse.Namespace) -> "ServeSettings":
    """How the server is to be run.

    Raises:
        InvalidParameter: a value out of its range, or a file that cannot be read.
    """
    from serve.settings import ServeSettings

    if args.weights_dir is not None and not args.weights_dir.is_dir():
        raise InvalidParameter(f"weights_dir = {str(args.weights_dir)!r} is no directory: make it")
    given = {"http_port": HTTP_PORT} | _given(args, ServeSettings)
    if args.no_http:
        given["http_port"] = None
    return ServeSettings(
        tls=_tls(args),
        tokens=_tokens(args.auth_tokens_file),
        admin_tokens=_tokens(args.admin_tokens_file),
        **given,
    )


def request_limits(args: argparse.Namespace) -> RequestLimits:
    """What one request may ask for."""
    return RequestLimits(**_given(args, RequestLimits))


def _given(args: argparse.Namespace, kind: Any) -> dict[str, Any]:
    """The fields of a dataclass that are flags and were given."""
    names = (each.name for each in fields(kind) if hasattr(args, each.name))
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _tokens(file: Path | None) -> tuple[str, ...]:
    from serve.tokens import read_tokens

    return () if file is None else read_tokens(file)


def _tls(args: argparse.Namespace) -> "TlsFiles | None":
    from serve.tls import TlsFiles, server_context, server_credentials

    if args.tls_certificate is None and args.tls_key is None and args.tls_client_ca is None:
        return None
    if args.tls_certificate is None or args.tls_key is None:
        raise InvalidParameter("TLS needs both --tls-certificate and --tls-key")
    files = TlsFiles(
        certificate=args.tls_certificate, key=args.tls_key, client_ca=args.tls_client_ca
    )
    # Before a model is loaded for nothing.
    server_credentials(files)
    server_context(files)
    return files


def _adder(group: Any) -> Callable[[str, Any, Any, str], None]:
    def add(flag: str, kind: Any, default: Any, text: str) -> None:
        if default is not None:
            text = f"{text} (default: {default})".strip()
        group.add_argument(flag, type=kind, help=text)

    return add


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _keys(parser: argparse.ArgumentParser) -> dict[tuple[str, str], argparse.Action]:
    """The flags by section and key."""
    return {
        (group.title, action.option_strings[0].removeprefix("--")): action
        for group in parser._action_groups
        if group.title in ("server", "admin", "limits", "model")
        for action in group._group_actions
    }


def _read(path: Path) -> list[tuple[argparse.Action, Any]]:
    """Flags and their values, in the order of the file."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also of numbers that are too long
        raise InvalidParameter(f"{path}: no TOML: {error}") from error
    parser = argparse.ArgumentParser(add_help=False)
    add_flags(parser)
    keys = _keys(parser)
    found = []
    for section, table in document.items():
        allowed = sorted(key for name, key in keys if name == section)
        if not allowed or not isinstance(table, Mapping):
            sections = ", ".join(f"[{name}]" for name in dict.fromkeys(name for name, _ in keys))
            raise InvalidParameter(f"{path}: {section!r} is not allowed: sections are {sections}")
        for key, value in table.items():
            if (section, key) not in keys:
                raise InvalidParameter(
                    f"{path}: [{section}] {key} = {value!r:.100} is not allowed: keys of this"
                    f" section are {', '.join(allowed)}"
                )
            action = keys[section, key]
            try:
                found.append((action, _converted(action, value)))
            except InvalidParameter as error:
                raise InvalidParameter(f"{path}: [{section}] {key}: {error}") from error
    return found


def _converted(action: argparse.Action, value: Any) -> Any:
    """A value of TOML as the flag's, checked as far as it can be alone."""
    kind: Any = bool if action.nargs == 0 else action.type  # a flag without a value is a bool
    kinds, name = {
        bool: ((bool,), "true or false"),
        int: ((int,), "an integer"),
        float: ((int, float), "a number"),
    }.get(kind, ((str,), "a string"))
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise InvalidParameter(f"{action.dest} = {value!r:.100} is not allowed: it must be {name}")
    if kind in (float, Path):
        value = kind(value)
    _verify(action.dest, value)
    return value


def _verify(name: str, value: Any) -> None:
    """Whether it is in its range, everything else being as it is by default."""
    import inspect

    from jaxinfer.llm import LLM
    from jaxinfer.llm.settings import verify_settings
    from serve.settings import ServeSettings

    for kind in (ServeSettings, RequestLimits):
        if name in {each.name for each in fields(kind)}:
            kind(**{name: value})
    of_llm = {"model_seed": "seed"}.get(name, name)
    names = inspect.signature(verify_settings).parameters
    if of_llm in names:
        settings = inspect.signature(LLM.__init__).parameters
        verify_settings(**{each: settings[each].default for each in names} | {of_llm: value})
