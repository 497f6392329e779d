"""Asks Hugging Face's transformers what a config means that says nothing but its ``model_type``.

Run from the repository's root, with the extra ``golden`` installed:

    python -m tests.golden.models.make_defaults

Writes ``defaults.json``: for each model type ``config``, as transformers writes it, and ``stated``,
what had to be said so that it is a model at all.
"""

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from tests.golden.models.cases import CASES

#: transformers' own defaults are a number of experts a token of None, heads of 42 numbers, and a
#: text that is not what a text by itself would be.
STATED: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"num_experts_per_tok": 6},
    "glm4_moe": {"head_dim": 128},
    "mistral3": {"text_config": {"model_type": "mistral"}},
}
MULTIMODAL = ("gemma3", "gemma3n", "gemma4", "llama4")


def main() -> None:
    model_types = sorted({model_type for model_type, *_ in CASES.values()} | set(MULTIMODAL))
    found = {model_type: defaults(model_type) for model_type in model_types}
    lines = (f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in found.items())
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    Path(__file__).with_name("defaults.json").write_text(text, encoding="utf-8")


def defaults(model_type: str) -> dict[str, Any]:
    stated = STATED.get(model_type, {})
    made = AutoConfig.for_model(model_type, **json.loads(json.dumps(stated)))
    config = json.loads(made.to_json_string(use_diff=True))
    for other_half in ("vision_config", "audio_config"):
        config.pop(other_half, None)
    config.pop("transformers_version")
    return {"stated": stated, "config": config}


if __name__ == "__main__":
    main()
