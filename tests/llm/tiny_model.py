"""A model directory small enough to be compiled in seconds: a config, and a tokenizer of bytes."""

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

VOCAB_SIZE = 264
MAX_LEN = 64
BOS, EOS = 256, 257

#: For ``LLM`` or the command: few programs, float32, random weights.
SETTINGS = {
    "load_format": "dummy",
    "max_num_seqs": 4,
    "max_num_batched_tokens": 16,
    "prefill_tokens": (16,),
    "page_size": 8,
    "num_pages": 65,
}

_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}:{{ message.content }};{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


def write_tiny_model(directory: Path, **changes: Any) -> Path:
    """Writes the directory, its config changed so, and returns it."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": MAX_LEN,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "torch_dtype": "float32",
    }
    (directory / "config.json").write_text(json.dumps(config | changes))
    _tokenizer().save(str(directory / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": _CHAT_TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(special))
    return directory


def _tokenizer() -> tokenizers.Tokenizer:
    """A token a byte, in the order of GPT-2's alphabet, and two special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = models.BPE({character: index for index, character in enumerate(alphabet)}, [])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    return tokenizer
