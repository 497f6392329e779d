"""Asks Hugging Face's transformers to continue prompts with the models `jaxinfer pull` fetches.

Run from the repository's root, with the extra ``golden`` installed and both files on disk:

    python -m tests.golden.models.make_real SmolLM2-135M-Instruct.Q4_1.gguf gemma-3-270m-q4_k_m.gguf

Writes ``real.json``: for each file name a list of prompts as token ids, the greedy tokens, the
log-probability of each, and how far its logit is above the second best. transformers dequantises
the same GGUF blocks to float32, so that an implementation in float32 must find the same tokens
wherever the gap is not tiny.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
NUM_GREEDY = 32
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time, in a village at the foot of a mountain, there lived an old clockmaker who",
)


def main(paths: list[str]) -> None:
    torch.set_grad_enabled(False)
    found = {Path(path).name: [*continuations(Path(path))] for path in paths}
    text = json.dumps(found).replace('{"prompt"', '\n{"prompt"')
    (HERE / "real.json").write_text(text + "\n", encoding="utf-8")


def continuations(path: Path) -> list[dict[str, Any]]:
    """One entry a prompt, as the module says."""
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    return [continuation(model, tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]


def continuation(model: torch.nn.Module, prompt: list[int]) -> dict[str, Any]:
    tokens, log_probs, gaps = list(prompt), [], []
    for _ in range(NUM_GREEDY):
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
        best, ids = torch.log_softmax(logits, dim=-1).topk(2)
        tokens.append(int(ids[0]))
        log_probs.append(round(float(best[0]), 6))
        gaps.append(round(float(best[0] - best[1]), 6))
    return {
        "prompt": prompt,
        "greedy": tokens[len(prompt) :],
        "log_probs": log_probs,
        "gaps": gaps,
    }


if __name__ == "__main__":
    main(sys.argv[1:])
