"""Which family a ``config.json`` belongs to."""

from collections.abc import Mapping
from typing import Any

from jaxinfer.config import ModelConfig
from jaxinfer.errors import ConfigError
from jaxinfer.models.cohere import COHERE, COHERE2
from jaxinfer.models.cwm import CWM
from jaxinfer.models.deepseek_v2 import DEEPSEEK_V2
from jaxinfer.models.deepseek_v3 import DEEPSEEK_V3
from jaxinfer.models.ernie4_5 import ERNIE4_5, HELIUM
from jaxinfer.models.ernie4_5_moe import ERNIE4_5_MOE
from jaxinfer.models.exaone4 import EXAONE4
from jaxinfer.models.gemma import GEMMA
from jaxinfer.models.gemma2 import GEMMA2, VAULTGEMMA
from jaxinfer.models.gemma3 import GEMMA3
from jaxinfer.models.gemma3n import GEMMA3N
from jaxinfer.models.gemma4 import GEMMA4
from jaxinfer.models.glm4 import GLM, GLM4
from jaxinfer.models.glm4_moe import GLM4_MOE
from jaxinfer.models.gpt2 import GPT2
from jaxinfer.models.gpt_neox import GPT_NEOX
from jaxinfer.models.gpt_oss import GPT_OSS
from jaxinfer.models.granite import GRANITE
from jaxinfer.models.granitemoe import GRANITEMOE
from jaxinfer.models.hf_config import HfConfig
from jaxinfer.models.hunyuan import HUNYUAN
from jaxinfer.models.llama import LLAMA
from jaxinfer.models.llama4 import LLAMA4
from jaxinfer.models.minicpm3 import MINICPM3
from jaxinfer.models.ministral3 import MINISTRAL3
from jaxinfer.models.mistral import MINISTRAL, MISTRAL
from jaxinfer.models.mixtral import MIXTRAL
from jaxinfer.models.nemotron import ARCEE, NEMOTRON
from jaxinfer.models.olmo import OLMO
from jaxinfer.models.olmo2 import OLMO2, OLMO3
from jaxinfer.models.olmoe import OLMOE
from jaxinfer.models.phi import PHI
from jaxinfer.models.phi3 import PHI3
from jaxinfer.models.phimoe import PHIMOE
from jaxinfer.models.qwen2 import QWEN2
from jaxinfer.models.qwen2_moe import QWEN2_MOE
from jaxinfer.models.qwen3 import QWEN3
from jaxinfer.models.qwen3_moe import QWEN3_MOE
from jaxinfer.models.seed_oss import SEED_OSS
from jaxinfer.models.smollm3 import SMOLLM3
from jaxinfer.models.stablelm import STABLELM
from jaxinfer.models.starcoder2 import STARCODER2
from jaxinfer.models.weights import Family

FAMILIES: tuple[Family, ...] = (
    LLAMA,
    SMOLLM3,
    MISTRAL,
    QWEN2,
    QWEN3,
    GEMMA,
    GEMMA2,
    GEMMA3,
    GEMMA3N,
    GEMMA4,
    PHI3,
    OLMO2,
    OLMO3,
    GRANITE,
    STARCODER2,
    GPT_NEOX,
    GPT2,
    MIXTRAL,
    QWEN2_MOE,
    QWEN3_MOE,
    OLMOE,
    GRANITEMOE,
    PHIMOE,
    GLM4_MOE,
    COHERE,
    COHERE2,
    CWM,
    ERNIE4_5,
    HELIUM,
    EXAONE4,
    GLM,
    GLM4,
    HUNYUAN,
    MINISTRAL3,
    NEMOTRON,
    ARCEE,
    PHI,
    SEED_OSS,
    STABLELM,
    MINISTRAL,
    OLMO,
    VAULTGEMMA,
    GPT_OSS,
    LLAMA4,
    ERNIE4_5_MOE,
    DEEPSEEK_V2,
    DEEPSEEK_V3,
    MINICPM3,
)
_BY_MODEL_TYPE = {model_type: family for family in FAMILIES for model_type in family.model_types}


def family_for(config: Mapping[str, Any]) -> Family:
    """The family of the config's ``model_type``.

    Raises:
        ConfigError: no family has it; the message lists the known ones.
    """
    model_type = HfConfig(config).get("model_type")
    if not isinstance(model_type, str) or model_type not in _BY_MODEL_TYPE:
        known = ", ".join(sorted(_BY_MODEL_TYPE))
        raise ConfigError(f"model_type = {model_type!r:.100} is not known here; known: {known}")
    return _BY_MODEL_TYPE[model_type]


def model_config(config: Mapping[str, Any]) -> ModelConfig:
    """The decoder that a ``config.json`` describes; see `Family.translate`."""
    return family_for(config).translate(config)
