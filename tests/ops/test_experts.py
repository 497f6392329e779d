"""Routing and experts against their plain meaning; what one token cannot do to another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.config import MlpSpec, RouterSpec
from jaxinfer.ops.experts import ExpertWeights, Routes, apply_experts, route
from sharding import make_mesh
from tests.models.dense_experts import routed

T, D, F, E, C = 13, 16, 24, 6, 2
GATED = MlpSpec(width=F)
WITH_BIASES = MlpSpec(width=F, bias=True)
NOT_GATED = MlpSpec(width=F, gated=False, activation="relu2", bias=True)
#: Sums of a few dozen products of numbers near 1, in another order.
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}

ROUTERS = {
    "softmax": RouterSpec(num_experts=8, top_k=3, renormalize=False),
    "softmax of the chosen": RouterSpec(num_experts=8, top_k=3),
    "one": RouterSpec(num_experts=8, top_k=1, renormalize=False),
    "all": RouterSpec(num_experts=8, top_k=8),
    "sigmoid": RouterSpec(num_experts=8, top_k=2, scores="sigmoid", renormalize=False),
    "scaled": RouterSpec(num_experts=8, top_k=2, scores="sigmoid", scale=2.5),
    "corrected": RouterSpec(num_experts=8, top_k=3, scores="sigmoid", correction=True),
    "corrected softmax": RouterSpec(num_experts=8, top_k=3, correction=True, renormalize=False),
    "best group": RouterSpec(num_experts=12, top_k=2, num_groups=4, top_groups=1),
    "groups by their best": RouterSpec(num_experts=12, top_k=4, num_groups=4, top_groups=2),
    "groups by their best two": RouterSpec(
        num_experts=12,
        top_k=4,
        scores="sigmoid",
        correction=True,
        num_groups=4,
        top_groups=2,
        group_score="top2",
    ),
    "sparsemixer": RouterSpec(
        num_experts=8, top_k=2, scores="sparsemixer", renormalize=False, jitter=0.3
    ),
    "sparsemixer of few": RouterSpec(
        num_experts=8, top_k=2, scores="sparsemixer", renormalize=False, jitter=0.01, scale=0.5
    ),
}


@pytest.mark.parametrize("name", ROUTERS)
def test_a_router_chooses_and_weighs_as_its_paper_says(name):
    spec, rng = ROUTERS[name], np.random.default_rng(0)
    logits_TE = rng.normal(size=(40, spec.num_experts)).astype(np.float32)
    logits_TE[:8] -= 5.0  # all of them negative, for what divides by the largest
    correction_E = rng.normal(size=spec.num_experts).astype(np.float32)
    given_E = jnp.asarray(correction_E) if spec.correction else None
    routes = jax.jit(route, static_argnums=0)(spec, jnp.asarray(logits_TE), given_E)
    assert routes.expert_TC.shape == (40, spec.top_k)
    rows = zip(logits_TE, np.asarray(routes.expert_TC), np.asarray(routes.weight_TC), strict=True)
    for logits_E, expert_C, weight_C in rows:
        expected = routed(spec, logits_E, correction_E if spec.correction else None)
        assert expert_C.tolist() == list(expected)
        np.testing.assert_allclose(weight_C, list(expected.values()), rtol=1e-5)


def test_a_softmax_over_all_made_to_sum_to_one_is_a_softmax_over_the_chosen():
    logits_TE = np.random.default_rng(1).normal(size=(9, 8)).astype(np.float32)
    routes = route(ROUTERS["softmax of the chosen"], jnp.asarray(logits_TE), None)
    chosen_TC = np.take_along_axis(logits_TE, np.asarray(routes.expert_TC), axis=1)
    powers_TC = np.exp(chosen_TC)
    expected_TC = powers_TC / powers_TC.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(routes.weight_TC, expected_TC, rtol=1e-5)


def test_a_bias_of_the_choice_is_not_weighed():
    spec = RouterSpec(num_experts=3, top_k=1, scores="sigmoid", renormalize=False, correction=True)
    routes = route(spec, jnp.asarray([[2.0, 1.0, 0.0]]), jnp.asarray([0.0, 0.0, 9.0]))
    assert routes.expert_TC.tolist() == [[2]]
    assert routes.weight_TC.tolist() == [[0.5]]


def random_weights(spec: MlpSpec, dtype: str = "float32", num_experts: int = E) -> ExpertWeights:
    rng = np.random.default_rng(2)

    def array(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape, scale=0.3), dtype)

    bias = spec.bias
    return ExpertWeights(
        gate_EDF=array(num_experts, D, F) if spec.gated else None,
        up_EDF=array(num_experts, D, F),
        down_EFD=array(num_experts, F, D),
        gate_bias_EF=array(num_experts, F) if bias and spec.gated else None,
        up_bias_EF=array(num_experts, F) if bias else None,
        down_bias_ED=array(num_experts, D) if bias else None,
    )


def random_step(seed: int = 3, dtype: str = "float32") -> tuple[jax.Array, Routes, jax.Array]:
    """Tokens, their routes (no token twice to one expert), and which of them are live."""
    rng = np.random.default_rng(seed)
    expert_TC = np.stack([rng.permutation(E)[:C] for _ in range(T)]).astype(np.int32)
    weight_TC = rng.uniform(0.1, 1.0, size=(T, C)).astype(np.float32)
    x_TD = jnp.asarray(rng.normal(size=(T, D)), dtype)
    return x_TD, Routes(jnp.asarray(expert_TC), jnp.asarray(weight_TC)), jnp.ones(T, bool)


def run(
    spec: MlpSpec,
    weights: ExpertWeights,
    step: tuple[jax.Array, Routes, jax.Array],
    devices: int = 1,
    implementation: str | None = None,
    **options: object,
) -> np.ndarray:
    options |= {"mesh": make_mesh({"model": devices}), "implementation": implementation}
    program = jax.jit(lambda weights, *step: apply_experts(spec, weights, *step, **options))
    return np.asarray(program(weights, *step))


def plainly(
    spec: MlpSpec, weights: ExpertWeights, step: tuple[jax.Array, Routes, jax.Array]
) -> np.ndarray:
    """One token after the other, in float64."""
    w = ExpertWeights(*(None if part is None else np.asarray(part, np.float64) for part in weights))
    x_TD, routes, _ = step
    out_TD = np.zeros(x_TD.shape)

    def add(bias: np.ndarray | None, expert: int) -> np.ndarray | float:
        return 0.0 if bias is None else bias[expert]

    for token, x_D in enumerate(np.asarray(x_TD, np.float64)):
        for expert, weight in zip(routes.expert_TC[token], routes.weight_TC[token], strict=True):
            up_F = x_D @ w.up_EDF[expert] + add(w.up_bias_EF, expert)
            if spec.gated:
                gate_F = x_D @ w.gate_EDF[expert] + add(w.gate_bias_EF, expert)
                hidden_F = gate_F / (1 + np.exp(-gate_F)) * up_F
            else:
                hidden_F = np.maximum(up_F, 0) ** 2
            out_D = hidden_F @ w.down_EFD[expert] + add(w.down_bias_ED, expert)
            out_TD[token] += float(weight) * out_D
    return out_TD


@pytest.mark.parametrize("spec", [GATED, WITH_BIASES, NOT_GATED], ids=["gated", "biases", "plain"])
@pytest.mark.parametrize(("devices", "implementation"), [(1, "reference"), (1, "xla"), (4, None)])
def test_experts_make_the_weighted_sum(spec, devices, implementation, four_devices):
    weights, step = random_weights(spec), random_step()
    out_TD = run(spec, weights, step, devices, implementation)
    np.testing.assert_allclose(out_TD, plainly(spec, weights, step), **ROUNDING)


@pytest.mark.parametrize("devices", [1, 2])
def test_weights_of_the_input_multiply_what_each_expert_reads(devices, four_devices):
    weights, (x_TD, routes, is_live_T) = random_weights(WITH_BIASES), random_step()
    step = (x_TD, routes, is_live_T.at[3].set(False))
    out_TD = run(WITH_BIASES, weights, step, devices, weigh_input=True)
    # Every choice as a token of its own that goes to one expert.
    expert_A1, weight_A1 = routes.expert_TC.reshape(-1, 1), routes.weight_TC.reshape(-1, 1)
    alone = (x_TD.repeat(C, axis=0) * weight_A1, Routes(expert_A1, jnp.ones((T * C, 1))), None)
    expected_TD = plainly(WITH_BIASES, weights, alone).reshape(T, C, D).sum(axis=1)
    expected_TD[3] = 0
    np.testing.assert_allclose(out_TD, expected_TD, **ROUNDING)


@pytest.mark.parametrize("devices", [1, 2])
def test_tokens_that_are_not_live_are_zero_and_reach_nobody(devices, four_devices):
    weights, (x_TD, routes, _) = random_weights(WITH_BIASES), random_step()
    is_live_T = np.arange(T) % 3 != 1
    live_T1 = jnp.asarray(is_live_T)[:, None]
    nan = jnp.float32(jnp.nan)
    poisoned = (
        jnp.where(live_T1, x_TD, nan),
        Routes(
            jnp.where(live_T1, routes.expert_TC, 2**30), jnp.where(live_T1, routes.weight_TC, nan)
        ),
        jnp.asarray(is_live_T),
    )
    out_TD = run(WITH_BIASES, weights, poisoned, devices)
    expected_TD = plainly(WITH_BIASES, weights, (x_TD, routes, is_live_T))
    np.testing.assert_allclose(out_TD[is_live_T], expected_TD[is_live_T], **ROUNDING)
    assert not out_TD[~is_live_T].any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_token_comes_out_the_same_to_the_bit_whatever_its_neighbours_and_its_place(dtype):
    weights = random_weights(GATED, dtype)
    x_TD, routes, is_live_T = step = random_step(dtype=dtype)
    mesh = make_mesh()
    program = jax.jit(lambda *step: apply_experts(GATED, weights, *step, mesh=mesh))
    first_D, seen = np.asarray(program(*step))[4], 0
    for seed in range(4, 10):
        others_TD, other_routes, _ = random_step(seed, dtype)
        for place in (0, 5, T - 1):
            neighbours = (
                others_TD.at[place].set(x_TD[4]),
                Routes(
                    other_routes.expert_TC.at[place].set(routes.expert_TC[4]),
                    other_routes.weight_TC.at[place].set(routes.weight_TC[4]),
                ),
                # Alone, in half a batch, in a full one.
                is_live_T & (jnp.arange(T) % (1 + seed % 3) == place % (1 + seed % 3)),
            )
            np.testing.assert_array_equal(np.asarray(program(*neighbours))[place], first_D)
            seen += 1
    assert seen == 18


def test_the_weights_of_experts_that_nobody_chose_are_never_read():
    weights, (x_TD, routes, is_live_T) = random_weights(WITH_BIASES), random_step()
    step = (x_TD, routes._replace(expert_TC=routes.expert_TC // 2), is_live_T)  # 0, 1 and 2
    is_chosen_E = jnp.arange(E) < 3
    poisoned = ExpertWeights(
        *(
            jnp.where(is_chosen_E.reshape(-1, *(1,) * (part.ndim - 1)), part, jnp.nan)
            for part in weights
        )
    )
    expected_TD = run(WITH_BIASES, weights, step)
    np.testing.assert_array_equal(run(WITH_BIASES, poisoned, step), expected_TD)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_temporaries_grow_with_what_is_chosen_and_not_with_the_experts_there_are(dtype):
    mesh = make_mesh()

    def temporaries(num_experts: int, num_tokens: int) -> int:
        weights = jax.eval_shape(lambda: random_weights(GATED, dtype, num_experts))
        x_TD, routes, is_live_T = jax.eval_shape(
            lambda: (
                jnp.zeros((num_tokens, D), dtype),
                Routes(
                    jnp.zeros((num_tokens, C), jnp.int32), jnp.zeros((num_tokens, C), jnp.float32)
                ),
                jnp.ones(num_tokens, bool),
            )
        )
        program = jax.jit(lambda weights, *step: apply_experts(GATED, weights, *step, mesh=mesh))
        compiled = program.lower(weights, x_TD, routes, is_live_T).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    # Rows in and out and between, each once a choice in float32, and a few integers.
    a_choice = 4 * (3 * D + 4 * F + 16)
    # XLA:CPU writes out what is counted: who goes where, and which tile belongs to whom.
    a_choice_and_expert = 2 * 4
    few_experts, many_experts = 4, 256
    for num_tokens in (64, 256):
        few, many = temporaries(few_experts, num_tokens), temporaries(many_experts, num_tokens)
        assert few < num_tokens * C * a_choice + 2**15
        assert many < few + num_tokens * C * many_experts * a_choice_and_expert + 2**15
