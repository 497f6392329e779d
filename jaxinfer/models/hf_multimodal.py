"""What the checkpoints that also see have around their language model, which is what is taken."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from jaxinfer.config import ModelConfig
from jaxinfer.models.hf_config import HARMLESS, HfConfig

#: Fields that may stand beside the two halves of a config, and mean its text too.
SHARED_FIELDS = (
    "bos_token_id",
    "eos_token_id",
    "dtype",
    "torch_dtype",
    "tie_word_embeddings",
    "is_encoder_decoder",
    "quantization_config",
)
#: Canonical names of the tensors of the other half.
VISION_TENSORS = (r"(model\.)?(vision_tower|multi_modal_projector)\..*",)
#: What older and newer writers put before the names of the text's tensors.
TEXT_NAMES = (
    (r"^language_model\.(?=model\.|lm_head\.)", ""),
    (r"^model\.language_model\.", "model."),
)


def read_text_part(
    fields: HfConfig,
    read: Callable[[HfConfig], ModelConfig],
    model_type: str,
    defaults: Mapping[str, Any],
    ignored: Collection[str],
) -> ModelConfig:
    """What ``read`` makes of the config's ``text_config``, or of itself where it is all text."""
    inner = fields.inner("text_config")
    if inner is None:
        return read(fields)
    # What the whole says goes before what its text half says.
    shared = {name: fields.get(name) for name in SHARED_FIELDS if fields.get(name) is not None}
    text = inner.updated({"model_type": model_type, **shared}, defaults=defaults)
    model = read(text)
    text.refuse_unread(HARMLESS | set(ignored))
    return model
