"""A model is data: what a decoder is made of, said in frozen specs.

``ModelConfig.layers`` is a tuple of ``LayerSpec(mixer, mlp)``; the one ``Decoder`` of
``jaxinfer.models`` builds any stack from it. A family file (``jaxinfer/models/<family>.py``)
translates a Hugging Face ``config.json`` into these specs and has no forward pass of its own. Every
spec checks itself when it is made and raises ``ConfigError`` with the field's name.
"""

from jaxinfer.config.attention import AttentionSpec, QueryTemperature
from jaxinfer.config.kv_sharing import shared_kv
from jaxinfer.config.latent import LatentSpec
from jaxinfer.config.layer_input import LayerInputSpec
from jaxinfer.config.mlp import Activation, GroupScore, MlpSpec, MoeSpec, RouterScores, RouterSpec
from jaxinfer.config.model import LayerSpec, MixerSpec, ModelConfig
from jaxinfer.config.norm import NormKind, NormSpec
from jaxinfer.config.rope import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongropeScaling,
    ProportionalScaling,
    RopeScaling,
    RopeSpec,
    YarnScaling,
)
from jaxinfer.config.streams import AltUpSpec, LaurelSpec

__all__ = [
    "Activation",
    "AltUpSpec",
    "AttentionSpec",
    "DynamicScaling",
    "GroupScore",
    "LatentSpec",
    "LaurelSpec",
    "LayerInputSpec",
    "LayerSpec",
    "LinearScaling",
    "Llama3Scaling",
    "LongropeScaling",
    "MixerSpec",
    "MlpSpec",
    "ModelConfig",
    "MoeSpec",
    "NormKind",
    "NormSpec",
    "ProportionalScaling",
    "QueryTemperature",
    "RopeScaling",
    "RopeSpec",
    "RouterScores",
    "RouterSpec",
    "YarnScaling",
    "shared_kv",
]
