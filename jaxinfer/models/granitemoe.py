"""Granite 3 MoE: Granite with experts, whose matrices are stacked in the checkpoint already."""

from collections.abc import Callable, Iterator

from jaxinfer.config import ModelConfig, MoeSpec
from jaxinfer.models.granite import granite_decoder
from jaxinfer.models.hf_config import HfConfig
from jaxinfer.models.hf_experts import BALANCING_FIELDS, expert_mlp, router
from jaxinfer.models.llama import IGNORED_TENSORS, LAYER, weights
from jaxinfer.models.weights import Family, WeightRule, linear

_EXPERTS = LAYER + "block_sparse_moe."


def _read(fields: HfConfig) -> ModelConfig:
    moe = MoeSpec(router=router(fields, "num_local_experts"), expert=expert_mlp(fields))
    return granite_decoder(fields, moe)


def _weights(config: ModelConfig) -> Iterator[WeightRule]:
    yield from weights(config)
    yield from linear("layers.{i}.mlp.router", _EXPERTS + "router.layer")
    sources = (("gate", "input_linear", _rows(0)), ("up", "input_linear", _rows(1)))
    for part, source, rows in (*sources, ("down", "output_linear", None)):
        yield WeightRule(
            target=f"layers.{{i}}.mlp.experts.{part}.kernel",
            source=f"{_EXPERTS}{source}.weight",
            rows=rows,
            is_stacked=True,
        )


def _rows(part: int) -> Callable[[ModelConfig, int], slice]:
    """The rows of gate (part 0) or up (1) of each expert."""

    def rows(config: ModelConfig, layer: int) -> slice:
        moe = config.layers[layer].mlp
        assert isinstance(moe, MoeSpec)
        return slice(part * moe.expert.width, (part + 1) * moe.expert.width)

    return rows


GRANITEMOE = Family(
    name="granitemoe",
    model_types=("granitemoe",),
    read=_read,
    weights=_weights,
    defaults={"num_local_experts": 8, "num_experts_per_tok": 2},
    ignored_fields=BALANCING_FIELDS,
    ignored_tensors=IGNORED_TENSORS,
)
