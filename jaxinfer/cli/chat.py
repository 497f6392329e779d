"""``jaxinfer chat``: a conversation at the terminal, or one answer."""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from jaxinfer.cli.answer import is_aborted, show_answer
from jaxinfer.cli.arguments import (
    add_model_arguments,
    add_sampling_arguments,
    new_parser,
    one_request_at_a_time,
    sampling_params,
)
from jaxinfer.cli.generate import read_standard_input
from jaxinfer.cli.loading import load_llm
from jaxinfer.cli.printing import note
from jaxinfer.cli.remote import RemoteModel, add_server_arguments, open_server
from jaxinfer.errors import InvalidParameter, JaxInferError, UsageError

if TYPE_CHECKING:
    from jaxinfer.llm import LLM
    from jaxinfer.outputs import RequestOutput
    from jaxinfer.sampling_params import SamplingParams

_DESCRIPTION = (
    "Talk with a model. Without a message it asks for one after the other, and knows what was said "
    "before; standard input that is no terminal is one message."
)
_COMMANDS = "/reset forgets what was said, /exit leaves"


def add_parser(commands: Any, name: str) -> None:
    """Adds the command."""
    parser = new_parser(commands, name, _DESCRIPTION, run)
    parser.add_argument("message", nargs="?", help="one message; its answer ends the command")
    parser.add_argument("--system", help="what the model is told first")
    add_sampling_arguments(parser, max_tokens=512)
    add_server_arguments(parser)
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    if args.n != 1:
        raise InvalidParameter(f"--n {args.n} is not allowed: a conversation has one next turn")
    params = sampling_params(args)
    message = args.message
    if message is None and (sys.stdin is None or not sys.stdin.isatty()):
        message = read_standard_input().removesuffix("\n")
    opened: LLM | RemoteModel = (
        load_llm(**one_request_at_a_time(args)) if args.server is None else open_server(args)
    )
    with opened as llm:
        if not isinstance(llm, RemoteModel):
            note(str(llm.budget))
        conversation = Conversation(llm, params, system=args.system, as_json=args.json)
        if message is None:
            return converse(conversation)
        return 130 if is_aborted(conversation.answer(message, since_start=True)) else 0


def converse(conversation: "Conversation") -> int:
    """Asks for messages until the input ends."""
    import readline  # noqa: F401  (gives input() its line editing)

    note(_COMMANDS)
    while True:
        try:
            message = input("> " if sys.stdout.isatty() else "").strip()
        except EOFError:
            return 0
        except UnicodeDecodeError as error:
            note(f"that was not UTF-8: {error} ({_COMMANDS})")
            continue
        if message == "/exit":
            return 0
        if message == "/reset":
            conversation.reset()
        elif message:
            try:
                conversation.answer(message)
            except conversation.passing_errors as error:
                note(f"{error} ({_COMMANDS})")


class Conversation:
    """What was said so far, and what answers it. Its turns share their prefix in the cache.

    Attributes:
        passing_errors: after which it can go on.
    """

    def __init__(
        self,
        llm: "LLM | RemoteModel",
        params: "SamplingParams",
        *,
        system: str | None,
        as_json: bool,
    ):
        self.passing_errors: tuple[type[JaxInferError], ...] = getattr(
            llm, "passing_errors", (UsageError,)
        )
        self._llm, self._params = llm, params
        self._system, self._as_json = system, as_json
        self.reset()

    def reset(self) -> None:
        """Back to the beginning."""
        self.messages: list[dict[str, str]] = []
        if self._system is not None:
            self.messages = [{"role": "system", "content": self._system}]

    def answer(self, message: str, *, since_start: bool = False) -> "RequestOutput":
        """Shows the model's turn after ``message``; an error leaves the conversation as it was."""
        asked = [*self.messages, {"role": "user", "content": message}]
        stream = self._llm.stream_chat(asked, self._params)
        output = show_answer(self._llm, stream, as_json=self._as_json, since_start=since_start)
        self.messages = [*asked, {"role": "assistant", "content": output.outputs[0].text}]
        return output
