"""What attention and norms can be told, and what they refuse."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.config import AttentionSpec, NormSpec, QueryTemperature
from jaxinfer.errors import ConfigError
from jaxinfer.ops.norm import normalize
from jaxinfer.ops.query_scale import query_scale

HEADS = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8}


def test_queries_grow_by_steps_of_their_position():
    ministral = QueryTemperature(beta=0.5, interval=4)
    first, second = 1 + 0.5 * math.log(2), 1 + 0.5 * math.log(3)
    scale_T = query_scale(ministral, jnp.asarray([0, 3, 4, 7, 8], jnp.int32))
    np.testing.assert_allclose(scale_T, [1, 1, first, first, second], rtol=1e-6)


def test_llama_4_takes_each_step_one_token_earlier():
    llama = QueryTemperature(beta=0.5, interval=4, offset=1)
    scale_T = query_scale(llama, jnp.asarray([2, 3, 6, 7], jnp.int32))
    first, second = 1 + 0.5 * math.log(2), 1 + 0.5 * math.log(3)
    np.testing.assert_allclose(scale_T, [1, first, first, second], rtol=1e-6)


def test_a_norm_without_weights_only_divides():
    x_TD = jnp.asarray([[3.0, -3.0, 3.0, 3.0]])
    made = normalize(NormSpec(weight=False, eps=1e-12), x_TD, None)
    np.testing.assert_allclose(made, [[1.0, -1.0, 1.0, 1.0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"qk_norm_over": "layer"}, "qk_norm_over = 'layer'.*head or each_head or all"),
        ({"qk_norm_after_rope": True}, "qk_norm_after_rope = True.*norm of single heads"),
        (
            {"qk_norm_after_rope": True, "qk_norm": NormSpec(), "qk_norm_over": "all"},
            "qk_norm_after_rope = True.*norm of single heads",
        ),
    ],
)
def test_norms_of_q_and_k_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        AttentionSpec(**HEADS, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"beta": 0.0, "interval": 4}, "beta = 0.0.*above 0"),
        ({"beta": 0.1, "interval": 0}, "interval = 0.*above 0"),
        ({"beta": 0.1, "interval": 4, "offset": 2}, "offset = 2.*0 or 1"),
    ],
)
def test_a_query_temperature_that_means_nothing_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        QueryTemperature(**fields)


@pytest.mark.parametrize("fields", [{"unit_offset": True}, {"kind": "layer", "bias": True}])
def test_a_norm_without_weights_has_no_others(fields):
    with pytest.raises(ConfigError, match="norm weight = False"):
        NormSpec(weight=False, **fields)
