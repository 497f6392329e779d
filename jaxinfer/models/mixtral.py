"""Mixtral 8x7B, 8x22B (arXiv 2401.04088): Mistral with experts in the place of the MLP."""

from collections.abc import Iterator

from jaxinfer.config import LayerSpec, ModelConfig, MoeSpec
from jaxinfer.models.hf_config import HfConfig
from jaxinfer.models.hf_experts import BALANCING_FIELDS, expert_mlp, expert_weights, router
from jaxinfer.models.hf_rope import rope
from jaxinfer.models.hf_specs import (
    attention,
    decoder,
    head_dim,
    num_layers,
    rms_norm,
    sliding_window,
)
from jaxinfer.models.llama import IGNORED_TENSORS, weights
from jaxinfer.models.weights import Family, WeightRule

#: Where the mixture lies in a layer, and the names of gate, up and down of an expert.
PLACE, PARTS = "block_sparse_moe", ("w1", "w3", "w2")


def _read(fields: HfConfig) -> ModelConfig:
    dim, norms = head_dim(fields), rms_norm(fields, eps=1e-5)
    layer = LayerSpec(
        mixer=attention(
            fields, dim, rope=rope(fields, dim, theta=1e6), window=sliding_window(fields)
        ),
        mlp=MoeSpec(
            router=router(fields, "num_local_experts", "num_experts"), expert=expert_mlp(fields)
        ),
        pre_norm=norms,
    )
    return decoder(fields, layers=(layer,) * num_layers(fields), final_norm=norms)


def mixtral_weights(config: ModelConfig) -> Iterator[WeightRule]:
    """Llama's rules with Mixtral's names of experts."""
    yield from weights(config)
    yield from expert_weights(config, place=PLACE, parts=PARTS)


MIXTRAL = Family(
    name="mixtral",
    model_types=("mixtral",),
    read=_read,
    weights=mixtral_weights,
    defaults={"num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2},
    ignored_fields=BALANCING_FIELDS | {"router_jitter_noise"},
    ignored_tensors=IGNORED_TENSORS,
)
