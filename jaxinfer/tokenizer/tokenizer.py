"""Text to token ids and back."""

from __future__ import annotations

import json
import operator
import secrets
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import tokenizers
from tokenizers import models
from tokenizers.processors import TemplateProcessing

from jaxinfer.errors import InvalidPrompt
from jaxinfer.sampling_params import RequestLimits
from jaxinfer.tokenizer.chat import ChatTemplates
from jaxinfer.tokenizer.spelling import spelling_of


class Tokenizer:
    """One model's vocabulary: encodes, decodes, and renders conversations.

    Made by ``load_tokenizer``. Safe to use from several threads.

    Attributes:
        vocab_size: one more than the largest token id. A model's logits may be wider (padding).
        bos_token_id: the token that begins a text, or None.
        eos_token_ids: every token that ends a text or a turn.
        add_bos: ``encode`` puts ``bos_token_id`` first.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        vocab_size: int,
        bos_token_id: int | None = None,
        eos_token_ids: Iterable[int] = (),
        special_ids: Iterable[int] = (),
        chat_templates: Mapping[str, str] | None = None,
        template_variables: Mapping[str, Any] | None = None,
    ):
        """
        Args:
            backend: does the work; truncation and padding are switched off.
            special_ids: special tokens besides those that the backend marks as such.
            chat_templates: Jinja templates by name; ``"default"`` is the one used unless named.
            template_variables: what each template sees besides the messages, such as ``bos_token``.

        Raises:
            TokenizerError: the backend's decoder is of an unknown kind.
        """
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._spelling = spelling_of(backend)
        self._added = backend.get_added_tokens_decoder()
        self._special = frozenset(special_ids).union(
            token_id for token_id, token in self._added.items() if token.special
        )
        self._bytes: dict[int, bytes] = {}
        self._templates = ChatTemplates(chat_templates or {}, template_variables or {})
        self.vocab_size = vocab_size
        self.bos_token_id = bos_token_id
        self.eos_token_ids = tuple(dict.fromkeys(eos_token_ids))
        self.add_bos = bos_token_id is not None and backend.encode("").ids[:1] == [bos_token_id]

    @property
    def chat_template(self) -> str | None:
        """The text of the default chat template, or None."""
        return self._templates.default

    @property
    def drops_first_space(self) -> bool:
        """A decoded text loses one leading space, which encoding put there."""
        return self._spelling.drops_first_space

    def encode(
        self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True
    ) -> list[int]:
        """Token ids of a text.

        Args:
            add_special_tokens: put the begin (and end) token where the model wants it. A rendered
                chat template already has them: say False there.
            parse_special: text that spells a special token becomes that token. False for text
                from people who are not to forge turns.

        Raises:
            InvalidPrompt: not a str, or with half a surrogate pair.
        """
        if not isinstance(text, str):
            raise InvalidPrompt(f"a prompt must be a str, not {type(text).__name__}")
        backend = self._backend if parse_special else self._plain
        try:
            return backend.encode(text, add_special_tokens=add_special_tokens).ids
        except Exception as error:  # the library raises nothing more specific
            raise InvalidPrompt(_why_not_encoded(text, error)) from error

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids; bytes that are not UTF-8 become U+FFFD.

        Raises:
            InvalidPrompt: an id that is not an integer, or that no token has.
        """
        pieces = []
        for token_id in ids:
            piece = self._lookup(token_id)
            if piece is None:
                raise InvalidPrompt(
                    f"no token has the id {token_id}; ids are below {self.vocab_size}"
                )
            if not (skip_special_tokens and token_id in self._special):
                pieces.append(piece)
        text = b"".join(pieces).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self.drops_first_space else text

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token adds to a text; none for an id without a token (padded vocabularies).

        Raises:
            InvalidPrompt: not an integer, or negative.
        """
        return self._lookup(token_id) or b""

    def id_to_token(self, token_id: int) -> str:
        """A token's own text, for log-probabilities; part of a character becomes U+FFFD.

        Raises:
            InvalidPrompt: not an integer, or negative.
        """
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def is_special(self, token_id: int) -> bool:
        """Is the token a control token, which ``skip_special_tokens`` leaves out of a text?"""
        return token_id in self._special

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        chat_template: str | None = None,
        template_limits: RequestLimits | None = None,
        **variables: Any,
    ) -> str:
        """Renders a conversation into the text the model was trained on.

        Args:
            messages: ``{"role": ..., "content": ...}``, oldest first.
            add_generation_prompt: end with the opening of the assistant's turn.
            chat_template: a template's name or text instead of the default one.
            template_limits: ``max_template_seconds`` and ``max_template_characters``; None is
                their defaults.
            variables: more for the template to see, such as ``tools`` or ``enable_thinking``.

        Raises:
            ChatTemplateError: no template, messages of a wrong form, or a template that fails,
                does something forbidden, or takes too long.
        """
        return self._templates.render(
            messages,
            chat_template,
            add_generation_prompt=add_generation_prompt,
            template_limits=template_limits,
            **variables,
        )

    def _lookup(self, token_id: int) -> bytes | None:
        """The bytes of a token, or None where the id has none."""
        try:
            index = operator.index(token_id)
        except TypeError:
            raise InvalidPrompt(f"a token id must be an integer, not {token_id!r}") from None
        if index < 0:
            raise InvalidPrompt(f"a token id must not be negative, as {token_id} is")
        if index not in self._bytes:
            token = self._backend.id_to_token(index) if index < self.vocab_size else None
            if token is None:
                return None
            is_added = index in self._added
            spell = self._spelling.added_bytes if is_added else self._spelling.token_bytes
            self._bytes[index] = spell(token)
        return self._bytes[index]

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """The backend without special tokens in texts; it shares the vocabulary."""
        plain = tokenizers.Tokenizer(_without_pieces(self._backend.model, self._special))
        plain.normalizer = self._backend.normalizer
        plain.pre_tokenizer = self._backend.pre_tokenizer
        plain.post_processor = self._backend.post_processor
        plain.add_tokens(
            [token for token_id, token in self._added.items() if token_id not in self._special]
        )
        return plain


def _why_not_encoded(text: str, error: Exception) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as half:
        return (
            f"the prompt is not Unicode text: {text[half.start]!r} at {half.start} is half a "
            "surrogate pair; decode its bytes with errors='replace'"
        )
    return f"the tokenizer has no tokens for this text: {error}"


def _without_pieces(model: models.Model, token_ids: Iterable[int]) -> models.Model:
    """A Unigram model takes any of its tokens it finds in a text; this one leaves these out."""
    if not isinstance(model, models.Unigram):
        return model
    state = json.loads(model.__getstate__())
    for token_id in token_ids:
        state["vocab"][token_id][0] = secrets.token_hex()  # nobody can guess and write it
    return models.Unigram(
        [(piece, score) for piece, score in state["vocab"]], state["unk_id"], state["byte_fallback"]
    )


def frame_texts(
    backend: tokenizers.Tokenizer, *, bos_token_id: int | None, eos_token_id: int | None
) -> None:
    """Makes the backend put these tokens before and after each text; None for none."""
    ends = {"bos": bos_token_id, "eos": eos_token_id}
    used = {name: token_id for name, token_id in ends.items() if token_id is not None}
    frame = [name for name in ("bos", "$A", "eos") if name in used or name == "$A"]
    backend.post_processor = TemplateProcessing(
        single=[f"{name}:0" for name in frame],
        special_tokens=[
            {"id": name, "ids": [token_id], "tokens": [backend.id_to_token(token_id)]}
            for name, token_id in used.items()
        ],
    )
