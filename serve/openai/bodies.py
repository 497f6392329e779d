"""The fields of request bodies that mean something here, and their types.

Ranges are not here: ``SamplingParams.verify`` knows them, whichever protocol a value came by.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
_CONTENT = {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART, "minItems": 1}]}
_MESSAGE = {
    "type": "object",
    "properties": {
        "role": {"type": "string"},
        "content": _CONTENT,
        "name": {"type": "string"},
    },
    "required": ["role", "content"],
}
_PROMPT = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        _IDS,
        {
            "type": "array",
            "items": {"anyOf": [{"type": "string", "minLength": 1}, _IDS]},
            "minItems": 1,
        },
    ]
}

_OLD = "An older name of what structured_outputs holds."

#: A text, token ids, or a list of either; read in ``prompts.py``.
Prompt = Annotated[Any, WithJsonSchema(_PROMPT)]
#: ``{"role": ..., "content": ...}``, oldest first; read in ``prompts.py``.
Messages = Annotated[list[Any], WithJsonSchema({"type": "array", "items": _MESSAGE, "minItems": 1})]


class Body(BaseModel):
    """No number is a text, no text a number, and none is infinite."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


class StreamOptions(Body):
    """What a stream says besides its text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class JsonSchemaFormat(Body):
    """OpenAI's wrapping of a schema. Outputs match it, ``strict`` or not."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """OpenAI's way to say what outputs match."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputs(Body):
    """vLLM's: one of the first five; see ``jaxinfer.structured_outputs``."""

    json_: str | dict[str, Any] | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool | None = None


class GenerationBody(Body):
    """What both endpoints take: OpenAI's fields, then those that vLLM has added to them."""

    model: str | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = Field(default=None, description="max_tokens, once more.")
    max_new_tokens: int | None = Field(
        default=None, description="Another bound, by its name in transformers: the lower one holds."
    )
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None

    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | dict[str, Any] | None = Field(default=None, description=_OLD)
    guided_regex: str | None = Field(default=None, description=_OLD)
    guided_choice: list[str] | None = Field(default=None, description=_OLD)
    guided_grammar: str | None = Field(default=None, description=_OLD)
    prompt_logprobs: int | None = None
    return_tokens_as_token_ids: bool | None = None
    return_token_ids: bool | None = None
    priority: int | None = Field(default=None, description="Higher is sooner.")
    cache_salt: str | None = None
    request_id: str | None = None


class CompletionBody(GenerationBody):
    """Of ``/v1/completions``."""

    prompt: Prompt
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None
    add_special_tokens: bool | None = None


class ChatBody(GenerationBody):
    """Of ``/v1/chat/completions``."""

    messages: Messages
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
