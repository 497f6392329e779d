"""A model that a server holds, where a command would else load one."""

import argparse
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from jaxinfer.cli.arguments import DEFAULT_MODEL, llm_arguments
from jaxinfer.errors import InvalidParameter, JaxInferError, Unsupported
from jaxinfer.outputs import RequestMetrics, RequestOutput, TokenEvent

if TYPE_CHECKING:
    from jaxinfer.sampling_params import SamplingParams
    from serve.client import Client, Stream

#: Where a token is looked for that no flag names.
TOKEN_VARIABLE = "JAXINFER_TOKEN"
#: Of settings that have another name than their flag.
_FLAGS = {"enable_prefix_caching": "no-prefix-caching", "seed": "model-seed"}


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Which server, and how to get in."""
    group = parser.add_argument_group("server")
    group.add_argument(
        "--server", metavar="HOST:PORT", help="ask the model of `jaxinfer serve`; none is loaded"
    )
    add_access_arguments(group)


def add_access_arguments(group: Any) -> None:
    """How to get in."""
    group.add_argument("--auth-token", help=f"bearer token (default: ${TOKEN_VARIABLE})")
    group.add_argument("--tls", action="store_true", help="over TLS")
    group.add_argument("--tls-ca", metavar="PEM", help="whose certificates to trust; over TLS")


def access(args: argparse.Namespace) -> dict[str, Any]:
    """What was said about that, as a client takes it."""
    token = args.auth_token or os.environ.get(TOKEN_VARIABLE) or None
    return {"token": token, "tls": args.tls, "tls_ca": args.tls_ca}


def open_server(args: argparse.Namespace) -> "RemoteModel":
    """The model of the server that the command line names.

    Raises:
        InvalidParameter: flags of a model that is loaded, too; certificates that cannot be read.
        Unsupported: the extra is not installed.
    """
    loaded = {name for name, value in llm_arguments(args).items() if value != "auto"} - {"model"}
    if loaded:
        name = min(loaded)
        flag = _FLAGS.get(name, name.replace("_", "-"))
        raise InvalidParameter(
            f"--{flag} is about a model that is loaded here: --server loads none"
        )
    # gRPC would write a line amid a conversation when a server ends a connection without calls.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    try:
        from serve.client import Client
    except ImportError as error:
        raise Unsupported(f"{error}: pip install 'jaxinfer[serve]'") from error
    client = Client(args.server, **access(args))
    return RemoteModel(client, "" if args.model == DEFAULT_MODEL else args.model)


class RemoteModel:
    """What commands need of an ``LLM``, asked of a server.

    Attributes:
        startup_seconds: none, because nothing is started.
        passing_errors: after which it may be asked again.
    """

    startup_seconds: Mapping[str, float] = {}
    passing_errors = (JaxInferError,)

    def __init__(self, client: "Client", model: str):
        """``model``: "" is the one that the server has."""
        self._client, self._model = client, model

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._client.close()

    def stream(self, prompt: str, params: "SamplingParams") -> "RemoteStream":
        """The tokens after a text."""
        return RemoteStream(self._client.stream(prompt, params=params, model=self._model))

    def stream_chat(
        self, messages: Sequence[Mapping[str, str]], params: "SamplingParams"
    ) -> "RemoteStream":
        """The tokens of the turn after a conversation."""
        return RemoteStream(self._client.stream_chat(messages, params=params, model=self._model))


class RemoteStream:
    """A request's events as a server sends them; its times are those of this process's clock."""

    def __init__(self, stream: "Stream"):
        self._stream = stream
        self._metrics = RequestMetrics(arrival_time=time.monotonic())

    def __iter__(self) -> Iterator[TokenEvent]:
        for event in self._stream:
            if event.token_ids:
                now = time.monotonic()
                self._metrics = replace(
                    self._metrics,
                    first_token_time=self._metrics.first_token_time or now,
                    last_token_time=now,
                )
            yield event

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends it on the server, too."""
        self._stream.close()

    @property
    def num_outputs(self) -> int:
        """Samples of the prompt."""
        return self._stream.num_outputs

    @property
    def outputs(self) -> list[RequestOutput]:
        """What has come so far."""
        return [replace(self._stream.result, metrics=self._metrics)]
