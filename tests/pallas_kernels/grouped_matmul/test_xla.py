"""What plain XLA must not do: multiply all rows by all matrices, or copy the matrices."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import grouped_matmul


@pytest.mark.parametrize(
    ("dtype", "w_dtype"),
    [
        ("float32", None),
        ("bfloat16", None),
        ("bfloat16", "int8"),
        ("float32", "int8"),
        ("bfloat16", "float8_e4m3fn"),
    ],
)
def test_temporaries_do_not_grow_with_the_number_of_groups(dtype, w_dtype):
    def temporaries(num_groups):
        def call(x, w, sizes, scale):
            return grouped_matmul(
                x, w, sizes, w_scale_EF=scale if w_dtype else None, implementation="xla"
            )

        shapes = (
            jax.ShapeDtypeStruct((512, 256), jnp.dtype(dtype)),
            jax.ShapeDtypeStruct((num_groups, 256, 512), jnp.dtype(w_dtype or dtype)),
            jax.ShapeDtypeStruct((num_groups,), jnp.int32),
            jax.ShapeDtypeStruct((num_groups, 512), jnp.float32),
        )
        return jax.jit(call).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    # 64 matrices are 8 to 32 MB. Visits grow, and fewer rows a group make tiles smaller.
    assert temporaries(64) < temporaries(4) + 2**16
