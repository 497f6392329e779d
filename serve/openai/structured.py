"""What the texts of outputs must match, in the ways in which bodies say so."""

from typing import Any

from jaxinfer.errors import InvalidParameter
from jaxinfer.structured_outputs import StructuredOutputsParams
from serve.openai.bodies import GenerationBody, ResponseFormat

#: Names of vLLM's older fields, after ``guided_``.
_OLD_NAMES = ("json", "regex", "choice", "grammar")


def read_structured(read: GenerationBody) -> StructuredOutputsParams | None:
    """From OpenAI's ``response_format``, vLLM's ``structured_outputs``, or its older ``guided_*``;
    None: any text will do.

    Raises:
        InvalidParameter: several of them, or a format without its schema.
    """
    wishes: dict[str, dict[str, Any]] = {}
    if read.response_format is not None and (wish := _of_format(read.response_format)):
        wishes["response_format"] = wish
    if read.structured_outputs is not None:
        wishes["structured_outputs"] = read.structured_outputs.model_dump(
            by_alias=True, exclude_none=True
        )
    for name in _OLD_NAMES:
        if (value := getattr(read, f"guided_{name}")) is not None:
            wishes[f"guided_{name}"] = {name: value}
    if len(wishes) > 1:
        raise InvalidParameter(
            f"{' and '.join(wishes)} are set: outputs can match one thing alone, so leave one"
        )
    for wish in wishes.values():
        return StructuredOutputsParams(**wish)
    return None


def _of_format(form: ResponseFormat) -> dict[str, Any]:
    """As parameters; none where any text will do."""
    if form.type == "json_schema":
        if form.json_schema is None:
            raise InvalidParameter(
                "response_format.json_schema is missing: give it, with a schema, or another type"
            )
        return {"json": form.json_schema.schema_}
    if form.json_schema is not None:
        raise InvalidParameter(
            f"response_format.json_schema needs type = 'json_schema', not {form.type!r}"
        )
    return {"json_object": True} if form.type == "json_object" else {}
