"""Work in chunks of rows equals work on all rows, where it is wanted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.sampling.rows import map_rows


@pytest.mark.parametrize("num_slots", [1, 3, 4, 5, 11, 16])
def test_wanted_rows_are_mapped_and_the_others_keep_their_default(num_slots):
    wanted = np.random.default_rng(num_slots).random(num_slots) < 0.4
    values = np.arange(num_slots * 2, dtype=np.float32).reshape(num_slots, 2)

    def double_and_sum(_, values_R2):
        return {"double": values_R2 * jnp.float32(2), "sum": jnp.sum(values_R2, axis=-1)}

    default = {"double": jnp.full((num_slots, 2), -1.0), "sum": jnp.full((num_slots,), -2.0)}
    result = jax.jit(
        lambda wanted, values: map_rows(double_and_sum, wanted, values, default, rows_at_once=4)
    )(wanted, values)
    assert np.array_equal(result["double"], np.where(wanted[:, None], values * 2, -1))
    assert np.array_equal(result["sum"], np.where(wanted, values.sum(-1), -2))
