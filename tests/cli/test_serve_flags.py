"""Settings of a server: from flags, from a file, from defaults, in this order."""

import argparse
import re
from dataclasses import fields
from pathlib import Path

import pytest

from jaxinfer import presets
from jaxinfer.cli.arguments import DEFAULT_MODEL
from jaxinfer.cli.serve_flags import (
    HTTP_PORT,
    _keys,
    add_flags,
    fill_from_file,
    request_limits,
    serve_settings,
)
from jaxinfer.errors import InvalidParameter
from jaxinfer.sampling_params import RequestLimits
from serve.settings import ServeSettings

#: Set by flags of other names.
OTHERS = {
    "tls": {"tls-certificate", "tls-key", "tls-client-ca"},
    "tokens": {"auth-tokens-file"},
    "http_port": {"http-port", "no-http"},
    "tokenizer_info": {"tokenizer-info"},
    "admin_tokens": {"admin-tokens-file"},
}


def parsed(*words) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    args = parser.parse_args([str(word) for word in words])
    fill_from_file(args)
    return args


@pytest.fixture
def config(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "server.toml"
        path.write_text(text)
        return path

    return write


def test_every_setting_has_a_flag_a_key_a_default_that_help_tells_and_bounds():
    parser = argparse.ArgumentParser()
    add_flags(parser)
    keys = {key: action for (_, key), action in _keys(parser).items()}
    assert len(keys) == len(_keys(parser)), "a key of two sections"
    for each in [*fields(ServeSettings), *fields(RequestLimits)]:
        if each.name in OTHERS:
            assert OTHERS[each.name] <= set(keys)
            continue
        action = keys[each.name.replace("_", "-")]
        assert action.dest == each.name
        told = re.search(r"\(default: (.*)\)", action.help)
        assert (told and told[1]) == (None if each.default is None else str(each.default))
        if each.name in ("weights_dir", "profile_dir"):
            assert action.type is Path
        elif each.name not in ("host", "admin_host", "otlp_endpoint"):
            bounds = each.metadata.get("bounds", (each.default,))
            assert action.type is type(bounds[0])
            beyond = {} if each in fields(RequestLimits) else each.metadata["bounds"]
            for value in (*([beyond[0] - 1, beyond[1] + 1] if beyond else [-1]), "x", True):
                with pytest.raises(InvalidParameter, match=f"{each.name} = .* must be"):
                    (ServeSettings if beyond else RequestLimits)(**{each.name: value})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 10**400])
def test_a_number_of_seconds_is_finite(value):
    with pytest.raises(InvalidParameter, match="drain_seconds"):
        ServeSettings(drain_seconds=value)


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(config):
    path = config(
        "[server]\ngrpc-port = 1\ndrain-seconds = 7\n"
        '[model]\nmodel = "mine"\nno-prefix-caching = true\n'
        "[limits]\nmax-n = 3\nmax-waiting-tokens = 99\n"
    )
    args = parsed("--config", path, "--grpc-port", 2, "--max-stop-bytes", 8)
    settings = serve_settings(args)
    assert (settings.grpc_port, settings.drain_seconds) == (2, 7.0)
    assert settings.step_patience == ServeSettings.step_patience
    assert request_limits(args) == RequestLimits(max_n=3, max_stop_bytes=8)
    assert (args.model, args.no_prefix_caching) == ("mine", True)
    assert (args.max_waiting_requests, args.max_waiting_tokens) == (1024, 99)


def test_help_says_what_each_limit_is_of():
    parser = argparse.ArgumentParser()
    add_flags(parser)
    keys = {key: action for (_, key), action in _keys(parser).items()}
    assert keys["max-stop-bytes"].help.startswith("of each stop string")
    assert keys["max-prompts"].help.startswith("of a body")
    assert all(keys[each.name.replace("_", "-")].help[0] != "(" for each in fields(RequestLimits))


def test_every_limit_of_a_request_comes_from_a_flag_and_from_a_file(config):
    given = {
        each.name: each.default / 2 if isinstance(each.default, float) else each.default - 1
        for each in fields(RequestLimits)
    }
    keys = {name.replace("_", "-"): value for name, value in given.items()}
    path = config("[limits]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items()))
    words = [word for key, value in keys.items() for word in (f"--{key}", value)]
    assert request_limits(parsed("--config", path)) == RequestLimits(**given)
    assert request_limits(parsed(*words)) == RequestLimits(**given)


def test_without_a_file_everything_is_as_by_default():
    args = parsed()
    assert serve_settings(args) == ServeSettings(http_port=HTTP_PORT)
    assert serve_settings(parsed("--no-http")) == ServeSettings()
    assert serve_settings(parsed("--no-http", "--tokenizer-info")).tokenizer_info
    assert request_limits(args) == RequestLimits()
    assert args.model == DEFAULT_MODEL


@pytest.mark.parametrize("name", ["local", "production"])
def test_a_file_of_ours_says_what_can_be_said_with_and_without_what_it_comments(
    name, tmp_path, config
):
    args = parsed("--config", name)
    assert serve_settings(args).host
    assert args.max_waiting_requests >= request_limits(args).max_prompts
    text = presets.find_serve_config(name).read_text()
    args = parsed("--config", config(re.sub(r"(?m)^#(?=\S)", "", text)))
    assert args.model


def test_there_is_a_test_for_each_of_our_files():
    assert set(presets._files("serve")) == {"local", "production"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[server]\nport = 1", r"\[server\] port = 1 .*: keys of this section are .*grpc-port"),
        ("[server]\nmax-n = 1", r"\[server\] max-n = 1 is not allowed"),
        (
            "[servers]\nhost = 'a'",
            r"'servers' is not allowed: sections are \[server\], \[admin\]",
        ),
        ("host = 'a'", "'host' is not allowed: sections are"),
        ("server = 3", "'server' is not allowed"),
        ("[server]\nhost = 1", r"\[server\] host: host = 1 .* must be a string"),
        ("[server]\ngrpc-port = '1'", "grpc_port = '1' .* must be an integer"),
        ("[server]\ngrpc-port = 1.0", "grpc_port = 1.0 .* must be an integer"),
        ("[server]\ngrpc-port = true", "grpc_port = True .* must be an integer"),
        ("[server]\ngrpc-port = 65536", "grpc_port = 65536 .* from 0 to 65535"),
        ("[server]\ndrain-seconds = nan", "drain_seconds = nan .* from 0.0 to"),
        ("[server]\ndrain-seconds = inf", "drain_seconds = inf"),
        ("[limits]\nmax-n = 0", r"\[limits\] max-n: max_n = 0 .* between 1 and"),
        ("[limits]\nmax-logprobs = 21", "max_logprobs = 21 .* between 0 and 20"),
        ("[limits]\nmax-prompts = 0", "max_prompts = 0 .* between 1 and 65536"),
        ("[limits]\nmax-guide-bytes = 2000000", "max_guide_bytes = 2000000 .* 1 and 1048576"),
        ("[limits]\nmax-schema-nesting = 121", "max_schema_nesting = 121 .* between 1 and 120"),
        ("[limits]\nmax-guide-seconds = nan", "max_guide_seconds = nan .* from 0.01 to 600"),
        ("[limits]\nmax-template-seconds = 0", "max_template_seconds = 0.0 .* from 0.01 to 600"),
        ("[limits]\nmax-template-characters = 1.5", "max_template_characters = 1.5 .* integer"),
        ("[limits]\nmax-waiting-requests = 0", "max_waiting_requests = 0 .* from 1 to"),
        ("[model]\nmemory-utilization = 1.5", "memory_utilization = 1.5 .* at most 1"),
        ("[model]\nno-prefix-caching = 1", "no_prefix_caching = 1 .* true or false"),
        ("[model]\nmodel-seed = []", r"model_seed = \[\] .* an integer"),
        ("[server", "no TOML"),
        ("[limits]\nmax-n = " + "1" * 5000, "no TOML"),
    ],
)
def test_what_a_file_may_not_say_is_named_with_file_key_value_and_what_may(config, text, words):
    path = config(text)
    with pytest.raises(InvalidParameter, match=words) as caught:
        parsed("--config", path)
    assert str(path) in str(caught.value)


def test_a_name_that_is_none_lists_those_that_exist(run):
    status, out, err = run("serve", "--config", "no-such")
    assert (status, out) == (2, "")
    assert "'no-such' is not allowed: it must be a file, or one of local, production" in err
