"""A mixture of experts that drops no token: who goes where, the products, and their sum.

Tokens are sorted by expert and multiplied group by group (MegaBlocks, arXiv 2211.15841), so that a
step costs what its tokens chose, not what experts there are. Experts are whole on every device,
each split along its width: nothing is sent around but the one sum that a dense MLP needs as well.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from jaxinfer.config import MlpSpec, RouterSpec
from jaxinfer.ops.activation import activate, activate_gate
from pallas_kernels import grouped_matmul
from sharding import DEFAULT_RULES
from sharding.rules import mesh_axes

_LEAST_SUM = 1e-20


class Routes(NamedTuple):
    """Experts of each token, int32 ``[T, C]``, best first, and their weights, float32."""

    expert_TC: jax.Array
    weight_TC: jax.Array


class ExpertWeights(NamedTuple):
    """The matrices and biases of all experts; no gate and no biases where a spec has none."""

    gate_EDF: jax.Array | None
    up_EDF: jax.Array
    down_EFD: jax.Array
    gate_bias_EF: jax.Array | None
    up_bias_EF: jax.Array | None
    down_bias_ED: jax.Array | None


def route(
    spec: RouterSpec,
    logits_TE: jax.Array,
    correction_E: jax.Array | None,
    scale_E: jax.Array | None = None,
) -> Routes:
    """The choice of each token; logits and correction are float32. See ``RouterSpec``.

    ``scale_E``: what ``expert_scale`` multiplies by, of any float dtype.
    """
    with jax.named_scope("route"):
        logits_TE = logits_TE * jnp.float32(spec.logit_scale)
        if spec.scores == "sparsemixer":
            expert_TC, weight_TC = _sparsemixer(spec, logits_TE)
            return Routes(expert_TC, weight_TC * jnp.float32(spec.scale))
        if spec.scores == "softmax":
            score_TE = jax.nn.softmax(logits_TE, axis=-1)
        else:
            score_TE = jax.nn.sigmoid(logits_TE)
        rank_TE = score_TE if correction_E is None else score_TE + correction_E[None, :]
        if spec.top_groups < spec.num_groups:
            rank_TE = jnp.where(_in_best_groups(spec, rank_TE), rank_TE, -jnp.inf)
        weight_TC, expert_TC = jax.lax.top_k(rank_TE, spec.top_k)
        if correction_E is not None:
            weight_TC = jnp.take_along_axis(score_TE, expert_TC, axis=-1)
        if spec.renormalize:
            weight_TC = weight_TC / (weight_TC.sum(axis=-1, keepdims=True) + _LEAST_SUM)
        if scale_E is not None:
            scale_TC = scale_E.at[expert_TC].get(mode="promise_in_bounds")
            weight_TC = weight_TC * scale_TC.astype(jnp.float32)
        return Routes(expert_TC, weight_TC * jnp.float32(spec.scale))


def _in_best_groups(spec: RouterSpec, rank_TE: jax.Array) -> jax.Array:
    """Bool ``[T, E]``: the experts of the ``top_groups`` best groups."""
    num_tokens, num_experts = rank_TE.shape
    size = num_experts // spec.num_groups
    best_TGn, _ = jax.lax.top_k(
        rank_TE.reshape(num_tokens, spec.num_groups, size), 2 if spec.group_score == "top2" else 1
    )
    _, group_Tn = jax.lax.top_k(best_TGn.sum(axis=-1), spec.top_groups)
    group_E = jnp.arange(num_experts, dtype=jnp.int32) // size
    return (group_Tn[:, :, None] == group_E[None, None, :]).any(axis=1)


def _sparsemixer(spec: RouterSpec, logits_TE: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The best expert, then the best of the others; GRIN at inference, where nothing is drawn."""
    left_TE, experts, weights = logits_TE, [], []
    nth_E = jnp.arange(spec.num_experts, dtype=jnp.int32)[None, :]
    for _ in range(spec.top_k):
        best_T1 = left_TE.max(axis=-1, keepdims=True)
        expert_T1 = left_TE.argmax(axis=-1, keepdims=True).astype(jnp.int32)
        # A logit is far off by its distance relative to the larger of the two.
        is_far_TE = best_T1 - logits_TE > jnp.float32(2 * spec.jitter) * jnp.maximum(
            jnp.abs(logits_TE), best_T1
        )
        near_TE = jnp.where(is_far_TE, -jnp.inf, left_TE)
        weights.append(1.0 / jnp.exp(near_TE - best_T1).sum(axis=-1, keepdims=True))
        experts.append(expert_T1)
        left_TE = jnp.where(nth_E == expert_T1, -jnp.inf, left_TE)
    return jnp.concatenate(experts, axis=-1), jnp.concatenate(weights, axis=-1)


def apply_experts(
    spec: MlpSpec,
    params: ExpertWeights,
    x_TD: jax.Array,
    routes: Routes,
    is_live_T: jax.Array,
    *,
    mesh: Mesh,
    weigh_input: bool = False,
    implementation: str | None = None,
) -> jax.Array:
    """Float32 ``[T, D]``: for each token the weighted sum of what its experts make of it.

    ``x_TD`` float32 or bfloat16, the dtype of the weights. A token that is not live costs nothing
    and comes out as zero, whatever it and its routes hold, NaN too. Bit for bit in one compiled
    program, a token's result depends on nothing but itself. ``weigh_input``: see ``MoeSpec``.
    """
    live_T1 = is_live_T[:, None]
    num_experts = params.up_EDF.shape[0]
    # Behind all groups, where rows are not multiplied.
    expert_TC = jnp.where(live_T1, routes.expert_TC, num_experts)
    weight_TC = jnp.where(live_T1, routes.weight_TC, 0.0)
    in_weight_TC = None
    if weigh_input:
        in_weight_TC, weight_TC = weight_TC, jnp.where(live_T1, jnp.ones_like(weight_TC), 0.0)
    multiply = functools.partial(_weighted_sum, spec, implementation)
    with jax.named_scope("experts"):
        # The bias of the result is whole on every device: added behind the sum over them.
        split, bias_ED = params._replace(down_bias_ED=None), params.down_bias_ED
        if mesh.size == 1:
            out_TD = multiply(split, x_TD, expert_TC, in_weight_TC, weight_TC)
        else:
            axes = mesh_axes(DEFAULT_RULES["mlp"])
            whole, columns = PartitionSpec(), PartitionSpec(None, axes)
            wide, narrow = PartitionSpec(None, None, axes), PartitionSpec(None, axes, None)
            out_TD = jax.shard_map(
                lambda x, experts, in_weights, weights, *split: jax.lax.psum(
                    multiply(ExpertWeights(*split), x, experts, in_weights, weights), axes
                ),
                mesh=mesh,
                in_specs=(whole, whole, whole, whole, wide, wide, narrow, columns, columns, whole),
                out_specs=whole,
                check_vma=False,
            )(x_TD, expert_TC, in_weight_TC, weight_TC, *split)
        if bias_ED is not None:
            bias_TCD = bias_ED.astype(jnp.float32).at[expert_TC].get(mode="clip")
            out_TD = out_TD + (bias_TCD * weight_TC[:, :, None]).sum(axis=1)
        return out_TD


def _weighted_sum(
    spec: MlpSpec,
    implementation: str | None,
    params: ExpertWeights,
    x_TD: jax.Array,
    expert_TC: jax.Array,
    in_weight_TC: jax.Array | None,
    weight_TC: jax.Array,
) -> jax.Array:
    """On one device: its part of the width of all experts."""
    num_tokens, top_k = expert_TC.shape
    num_experts = params.up_EDF.shape[0]
    expert_A = expert_TC.reshape(-1)
    # Two sorts and no scatter, which XLA:TPU gives to another unit.
    order_A = jnp.argsort(expert_A)
    place_A = jnp.argsort(order_A)
    nth_E = jnp.arange(num_experts, dtype=jnp.int32)
    sizes_E = (nth_E[:, None] == expert_A[None, :]).sum(axis=1, dtype=jnp.int32)
    sorted_A = _rows(expert_A, order_A)
    x_AD = _rows(x_TD, jax.lax.div(order_A, jnp.int32(top_k)))
    if in_weight_TC is not None:
        in_weight_A = _rows(in_weight_TC.reshape(-1), order_A)
        x_AD = (x_AD.astype(jnp.float32) * in_weight_A[:, None]).astype(x_AD.dtype)

    def product(x: jax.Array, kernel: jax.Array, bias_EF: jax.Array | None) -> jax.Array:
        y = grouped_matmul(
            x,
            kernel,
            sizes_E,
            preferred_element_type=jnp.float32,
            implementation=implementation,
        )
        return (
            y if bias_EF is None else y + bias_EF.astype(jnp.float32).at[sorted_A].get(mode="clip")
        )

    hidden_AF = product(x_AD, params.up_EDF, params.up_bias_EF)
    if params.gate_EDF is None:
        hidden_AF = activate(spec.activation, hidden_AF)
    else:
        gate_AF = product(x_AD, params.gate_EDF, params.gate_bias_EF)
        hidden_AF = activate_gate(spec, gate_AF, hidden_AF)
    out_AD = product(hidden_AF.astype(x_TD.dtype), params.down_EFD, None)
    out_TCD = _rows(out_AD, place_A).reshape(num_tokens, top_k, -1)
    return (out_TCD * weight_TC[:, :, None]).sum(axis=1)


def _rows(array: jax.Array, index_A: jax.Array) -> jax.Array:
    """``array[index]`` for an index that is a permutation, or one of tokens."""
    return array.at[index_A].get(mode="promise_in_bounds")
