"""Ministral 3 (arXiv 2601.08584): Mistral with YaRN, and queries that grow with their position.

``mistral3`` is the multimodal model around its text, or around the text of Mistral Small 3: of it
the language model is taken.
"""

from jaxinfer.config import ModelConfig, QueryTemperature
from jaxinfer.errors import ConfigError
from jaxinfer.models.hf_config import HARMLESS, MAX_LEN, HfConfig
from jaxinfer.models.hf_multimodal import SHARED_FIELDS, TEXT_NAMES, VISION_TENSORS
from jaxinfer.models.hf_rope import rope_base, rope_object, rope_of
from jaxinfer.models.hf_specs import attention, head_dim, rms_norm, sliding_window
from jaxinfer.models.llama import IGNORED_TENSORS, gated_mlp, pre_norm_decoder, weights
from jaxinfer.models.mistral import MISTRAL
from jaxinfer.models.weights import Family

_TEXT_DEFAULTS = {
    "ministral3": {"head_dim": 128, "num_key_value_heads": 8},
    "mistral": MISTRAL.defaults,
}
#: Where a config states no rope.
_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
_ORIGINAL_LEN = "original_max_position_embeddings"
_VISION_FIELDS = """
    vision_config image_token_index image_token_id projector_hidden_act vision_feature_layer
    multimodal_projector_bias spatial_merge_size
"""


def _read(fields: HfConfig) -> ModelConfig:
    inner = fields.inner("text_config")
    if inner is None:
        if fields.get("model_type") == "mistral3":
            raise ConfigError("the field text_config is missing")
        return _read_text(fields)
    defaults = inner.choice("model_type", _TEXT_DEFAULTS, "mistral")
    model_type = inner.get("model_type", "mistral")
    # What the text says goes before what the whole says, which is often transformers' default. But
    # the head is the whole's: of whether it is tied the text knows nothing.
    shared = {name: fields.get(name) for name in SHARED_FIELDS}
    added = {name: value for name, value in shared.items() if inner.get(name) is None}
    added["tie_word_embeddings"] = fields.flag("tie_word_embeddings", True)
    text = inner.updated({"model_type": model_type, **added}, defaults=defaults)
    read = MISTRAL.read if model_type == "mistral" else _read_text
    model = read(text)
    text.refuse_unread(HARMLESS)
    return model


def _read_text(fields: HfConfig) -> ModelConfig:
    parameters = rope_object(fields, _ROPE)
    if parameters is None:
        raise fields.error("rope_parameters", {}, "given: this family's rope is scaled")
    dim, theta = head_dim(fields), rope_base(fields, "rope_theta", 1e4)
    temperature = _temperature(parameters)
    parameters.get("max_position_embeddings")  # That of the model, once more.
    mixer = attention(
        fields,
        dim,
        rope=rope_of(parameters, fields, dim, theta=theta),
        window=sliding_window(fields),
        query_temperature=temperature,
    )
    return pre_norm_decoder(fields, mixer, gated_mlp(fields), rms_norm(fields, eps=1e-5))


def _temperature(parameters: HfConfig) -> QueryTemperature | None:
    """How the queries grow: ``llama_4_scaling_beta`` of 0 leaves them as they are."""
    beta = parameters.number("llama_4_scaling_beta", 0.0)
    if beta < 0:
        raise parameters.error("llama_4_scaling_beta", beta, "0 or more")
    if beta == 0:
        return None
    return QueryTemperature(beta=beta, interval=parameters.size(_ORIGINAL_LEN, most=MAX_LEN))


MINISTRAL3 = Family(
    name="ministral3",
    model_types=("ministral3", "mistral3"),
    read=_read,
    weights=weights,
    defaults=_TEXT_DEFAULTS["ministral3"],
    ignored_fields=frozenset(_VISION_FIELDS.split()),
    ignored_tensors=IGNORED_TENSORS + VISION_TENSORS,
    renamed=TEXT_NAMES,
)
