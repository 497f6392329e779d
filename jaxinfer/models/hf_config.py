"""A Hugging Face ``config.json``, read strictly: every field is used, ignored by name, or refused.

A family reads the fields it understands through `HfConfig`; what it did not ask for must stand in
``HARMLESS`` or in the family's own list. A field that is ``null`` counts as absent.
"""

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from jaxinfer.config import Activation
from jaxinfer.errors import ConfigError

T = TypeVar("T")

#: Far above every published model, far below what could hurt: a config comes from strangers.
MAX_WIDTH = 1 << 20
MAX_LAYERS = 1 << 12
MAX_VOCAB = 1 << 24
MAX_LEN = (1 << 31) - 1
_MAX_NUMBER = 1e30

_BOOK_KEEPING = """
    _name_or_path name_or_path _commit_hash _from_model_config architectures auto_map model_type
    transformers_version transformers.js_config transformers_weights finetuning_task
    task_specific_params tokenizer_class unsloth_fixed unsloth_version
"""
_RUNNING = """
    use_cache cache_implementation attn_implementation _attn_implementation
    _attn_implementation_autoset _flash_attn_2_enabled chunk_size_feed_forward pretraining_tp
    output_attentions output_hidden_states output_scores return_dict return_dict_in_generate
    gradient_checkpointing torchscript use_bfloat16 tf_legacy_loss is_decoder
"""
_TRAINING = """
    initializer_range attention_dropout hidden_dropout residual_dropout embedding_dropout
    resid_pdrop embd_pdrop attn_pdrop attention_probs_dropout_prob hidden_dropout_prob
"""
_OTHER_HEADS = """
    classifier_dropout id2label label2id num_labels _num_labels problem_type tie_encoder_decoder
    cross_attention_hidden_size decoder_start_token_id
"""
_GENERATION = """
    pad_token_id sep_token_id prefix max_length min_length do_sample early_stopping num_beams
    num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty
    length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
"""
#: Fields that change no logit of a causal language model, whatever they say.
HARMLESS = frozenset((_BOOK_KEEPING + _RUNNING + _TRAINING + _OTHER_HEADS + _GENERATION).split())

_ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
#: Gemma's first configs say "gelu" and mean the approximation by tanh.
GEMMA_ACTIVATIONS: Mapping[str, Activation] = {**_ACTIVATIONS, "gelu": "gelu_tanh"}
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class HfConfig:
    """The fields of one JSON object, and which of them have been read.

    ``defaults`` say what it means where a field is left out, which is not the same as ``null``.
    Every getter raises ConfigError with the field, its value and what is allowed; a field without a
    default must be there.
    """

    def __init__(
        self, fields: Mapping[str, Any], path: str = "", *, defaults: Mapping[str, Any] = _NOTHING
    ) -> None:
        if not isinstance(fields, Mapping):
            raise ConfigError(f"{path or 'config'} = {fields!r} is not a JSON object")
        self._fields = fields
        self._path = path
        self._defaults = defaults
        self._read: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        """The value as it stands."""
        self._read.add(name)
        value = self._fields.get(name) if name in self._fields else self._defaults.get(name)
        return default if value is None else value

    def states(self, name: str) -> bool:
        """Whether the object itself gives the field a value."""
        self._read.add(name)
        return self._fields.get(name) is not None

    def size(self, name: str, default: int | None = None, *, most: int = MAX_WIDTH) -> int:
        """A whole number from 1 to ``most``."""
        value = self._required(name, default)
        is_int = isinstance(value, int) and not isinstance(value, bool)
        if not is_int or not 0 < value <= most:
            raise self.error(name, value, f"a whole number from 1 to {most}")
        return value

    def count(self, name: str, default: int | None = None, *, most: int) -> int:
        """A whole number from 0 to ``most``."""
        return 0 if self.get(name, default) == 0 else self.size(name, default, most=most)

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number."""
        value = self._required(name, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not -_MAX_NUMBER < value < _MAX_NUMBER:
            raise self.error(name, value, "a finite number")
        return float(value)

    def positive(self, name: str, default: float | None = None) -> float:
        """A finite number above 0."""
        value = self.number(name, default)
        if value <= 0:
            raise self.error(name, value, "a number above 0")
        return value

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of finite numbers above 0."""
        values = self._required(name, None)
        if not isinstance(values, list | tuple) or not all(map(_is_positive, values)):
            raise self.error(name, values, "a list of numbers above 0")
        return tuple(map(float, values))

    def optional_number(self, name: str) -> float | None:
        """A finite number, or None where the field is absent."""
        return None if self.get(name) is None else self.number(name)

    def optional_positive(self, name: str) -> float | None:
        """A finite number above 0, or None where the field is absent."""
        return None if self.get(name) is None else self.positive(name)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, value, "true or false")
        return value

    def choice(self, name: str, allowed: Mapping[str, T], default: str | None = None) -> T:
        """What ``allowed`` has for the field's text."""
        value = self._required(name, default)
        if not isinstance(value, str) or value not in allowed:
            raise self.error(name, value, "one of " + ", ".join(allowed))
        return allowed[value]

    def activation(self, name: str, known: Mapping[str, Activation] = _ACTIVATIONS) -> Activation:
        """The activation of an MLP by Hugging Face's name for it; SiLU where it is absent."""
        return self.choice(name, known, "silu")

    def only(self, name: str, *allowed: Any) -> None:
        """Refuses a known field whose other values this build does not support."""
        value = self.get(name, allowed[0])
        if value not in allowed:
            raise self.error(name, value, " or ".join(map(repr, allowed)))

    def inner(self, name: str) -> "HfConfig | None":
        """The JSON object in a field; None where it is absent or empty."""
        fields = self.get(name)
        return None if fields is None or fields == {} else HfConfig(fields, f"{self._path}{name}.")

    def updated(self, fields: Mapping[str, Any], *, defaults: Mapping[str, Any]) -> "HfConfig":
        """The same object with ``fields`` over it and ``defaults`` under it."""
        return HfConfig({**self._fields, **fields}, self._path, defaults=defaults)

    def refuse_unread(self, ignored: Collection[str] = ()) -> None:
        """Raises ConfigError with all fields that are neither read nor ignored nor null."""
        known = self._read | set(ignored)
        unread = [f for f, value in self._fields.items() if f not in known and value is not None]
        if unread:
            named = ", ".join(f"{self._path}{field} = {self._fields[field]!r}" for field in unread)
            raise ConfigError(
                f"unknown in this family: {named:.1000}; what a field changes must be known before "
                "the model can be trusted: remove it from config.json if it changes nothing"
            )

    def error(self, name: str, value: Any, allowed: str) -> ConfigError:
        """The refusal of one value."""
        is_default = name in self._defaults and name not in self._fields
        left_out = ", what it means where it is left out," if is_default else ""
        return ConfigError(
            f"{self._path}{name} = {value!r:.200}{left_out} is not allowed: it must be {allowed}"
        )

    def _required(self, name: str, default: Any) -> Any:
        value = self.get(name, default)
        if value is None:
            raise ConfigError(f"the field {self._path}{name} is missing")
        return value


def _is_positive(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 < value < _MAX_NUMBER
