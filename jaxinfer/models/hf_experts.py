"""Mixtures of experts as Hugging Face configs and checkpoints state them."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from jaxinfer.config import GroupScore, LayerSpec, MlpSpec, ModelConfig, MoeSpec, RouterSpec
from jaxinfer.models.hf_config import MAX_LAYERS, HfConfig
from jaxinfer.models.hf_specs import num_layers
from jaxinfer.models.llama import LAYER, gated_mlp_weights
from jaxinfer.models.weights import WeightRule, linear, only_where

MAX_EXPERTS = 1 << 12
#: Of the loss that spreads tokens over experts in training, and of what a step returns beside it.
BALANCING_FIELDS = frozenset({"router_aux_loss_coef", "output_router_logits"})


def router(
    fields: HfConfig, *count_names: str, top_k_name: str = "num_experts_per_tok", **kwargs: Any
) -> RouterSpec:
    """The router: the number of experts stands in one of the fields ``count_names``, or in several
    that agree. ``kwargs`` are further fields of the spec.
    """
    stated = [name for name in count_names if fields.states(name)]
    name = next(iter(stated), count_names[0])
    num_experts = fields.size(name, most=MAX_EXPERTS)
    for other in stated:
        if fields.get(other) != num_experts:
            raise fields.error(other, fields.get(other), f"{name} = {num_experts}")
    top_k = fields.size(top_k_name, most=MAX_EXPERTS)
    if top_k > num_experts:
        raise fields.error(top_k_name, top_k, f"at most {name} = {num_experts}")
    return RouterSpec(num_experts=num_experts, top_k=top_k, **kwargs)


def in_groups(fields: HfConfig, spec: RouterSpec, group_score: GroupScore = "top2") -> RouterSpec:
    """The router with the groups of ``n_group`` and ``topk_group``, as in DeepSeek-V3."""
    num_groups = fields.size("n_group", 1, most=MAX_EXPERTS)
    top_groups = fields.size("topk_group", 1, most=MAX_EXPERTS)
    size, rest = divmod(spec.num_experts, num_groups)
    least = 2 if num_groups > 1 and group_score == "top2" else 1
    if rest or size < least:
        allowed = (
            f"a divisor of the {spec.num_experts} experts that leaves at least {least} in a group"
        )
        raise fields.error("n_group", num_groups, allowed)
    if top_groups > num_groups or top_groups * size < spec.top_k:
        allowed = f"at most n_group = {num_groups}, with {spec.top_k} experts to choose among"
        raise fields.error("topk_group", top_groups, allowed)
    return replace(spec, num_groups=num_groups, top_groups=top_groups, group_score=group_score)


def deepseek_experts(fields: HfConfig) -> MoeSpec:
    """The experts of DeepSeek-V3 and of those that took them: biased scores, in groups."""
    chosen = router(
        fields,
        "n_routed_experts",
        "num_local_experts",
        scores="sigmoid",
        correction=True,
        renormalize=fields.flag("norm_topk_prob", True),
        scale=fields.positive("routed_scaling_factor", 1.0),
    )
    expert = expert_mlp(fields, "moe_intermediate_size")
    return MoeSpec(
        router=in_groups(fields, chosen), expert=expert, shared=shared_experts(fields, expert)
    )


def shared_experts(fields: HfConfig, expert: MlpSpec) -> MlpSpec:
    """``n_shared_experts`` side by side: one of their width together."""
    count = fields.size("n_shared_experts", 1, most=MAX_EXPERTS)
    return replace(expert, width=count * expert.width)


def num_dense(fields: HfConfig, default: int = 0) -> int:
    """How many layers come before the first one with experts."""
    first = fields.get("first_k_dense_replace", default)
    if not isinstance(first, int) or isinstance(first, bool) or not 0 <= first <= MAX_LAYERS:
        raise fields.error("first_k_dense_replace", first, "a whole number, 0 or more")
    return first


def expert_mlp(fields: HfConfig, width_name: str = "intermediate_size") -> MlpSpec:
    """One gated expert of this width."""
    return MlpSpec(width=fields.size(width_name), activation=fields.activation("hidden_act"))


def is_sparse(fields: HfConfig) -> Callable[[int], bool]:
    """Which layers have experts: each ``decoder_sparse_step``-th, but for ``mlp_only_layers``."""
    step = fields.size("decoder_sparse_step", 1, most=MAX_LAYERS)
    dense, count = fields.get("mlp_only_layers", []), num_layers(fields)
    is_list = isinstance(dense, list | tuple) and not any(isinstance(i, bool) for i in dense)
    if not is_list or not all(isinstance(i, int) and 0 <= i < count for i in dense):
        allowed = f"a list of numbers of layers, from 0 to {count - 1}"
        raise fields.error("mlp_only_layers", dense, allowed)
    return lambda i: i not in dense and (i + 1) % step == 0


def with_experts(
    layers: tuple[LayerSpec, ...], moe: MoeSpec, is_sparse: Callable[[int], bool]
) -> tuple[LayerSpec, ...]:
    """The layers, some of them with experts in the place of their MLP."""
    return tuple(
        replace(layer, mlp=moe) if is_sparse(i) else layer for i, layer in enumerate(layers)
    )


def moe_of(config: ModelConfig) -> MoeSpec | None:
    """The experts of the first layer that has some; those of other layers have the same tensors."""
    found = (layer.mlp for layer in config.layers if isinstance(layer.mlp, MoeSpec))
    return next(found, None)


def expert_weights(
    config: ModelConfig,
    *,
    place: str = "mlp",
    parts: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    shared: str = "shared_expert",
) -> Iterator[WeightRule]:
    """Router, experts and shared expert where a checkpoint has a tensor for each expert.

    ``place``: of the mixture in a layer; ``parts``: what gate, up and down of an expert are called.
    """
    moe = moe_of(config)
    if moe is not None:
        yield from only_where(has_experts, _expert_weights(moe, place, parts, shared))


def has_experts(layer: LayerSpec) -> bool:
    """Whether the layer is one of those that have experts."""
    return isinstance(layer.mlp, MoeSpec)


def _expert_weights(
    moe: MoeSpec, place: str, parts: tuple[str, str, str], shared: str
) -> Iterator[WeightRule]:
    yield from linear("layers.{i}.mlp.router", f"{LAYER}{place}.gate")
    if moe.router.correction:
        bias = f"{LAYER}{place}.gate.e_score_correction_bias"
        yield WeightRule(target="layers.{i}.mlp.correction", source=bias)
    for ours, theirs in zip(("gate", "up", "down"), parts, strict=True):
        source = f"{LAYER}{place}.experts.{{e}}.{theirs}"
        yield from linear(f"layers.{{i}}.mlp.experts.{ours}", source, bias=moe.expert.bias)
    if moe.shared is not None:
        yield from gated_mlp_weights("mlp.shared", f"{place}.{shared}", bias=moe.shared.bias)
    if moe.shared_gate:
        yield from linear("layers.{i}.mlp.shared_gate", f"{LAYER}{place}.shared_expert_gate")
