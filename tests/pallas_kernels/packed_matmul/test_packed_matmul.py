"""The product of packed weights against float64, on every kind of vectors that this CPU has."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import NoImplementation, native
from pallas_kernels.packed_matmul import (
    pack,
    packed_matmul,
    packed_silu_gate,
    panel_width,
    refuse,
    unpack,
    unpack_columns,
)

needs_code = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))
SIZES = [(2, 1), (64, 33), (96, 32), (1536, 70), (130, 577)]


def random_bf16(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.bfloat16)


def multiply(x: jax.Array, weights: jax.Array) -> np.ndarray:
    panels = pack(weights)
    program = jax.jit(packed_matmul, static_argnums=2)
    return np.asarray(program(x, panels, weights.shape[1]))


@needs_code
@pytest.mark.parametrize("sizes", SIZES)
def test_unpacked_weights_are_those_that_were_packed(sizes: tuple[int, int]) -> None:
    weights = random_bf16(*sizes)
    panels = pack(weights)
    np.testing.assert_array_equal(unpack(panels, sizes[1]), weights)
    np.testing.assert_array_equal(pack(weights.T, is_transposed=True), panels)
    blank = pack(jax.ShapeDtypeStruct(weights.shape, weights.dtype))
    assert (blank.shape, blank.dtype) == (panels.shape, panels.dtype)


@needs_code
def test_columns_come_out_as_rows_and_those_out_of_range_as_the_nearest() -> None:
    weights = random_bf16(64, 2 * panel_width())
    rows = unpack_columns(pack(weights), jnp.asarray([5, 0, 33, -1, 10**6], jnp.int32))
    np.testing.assert_array_equal(rows, weights.T[jnp.asarray([5, 0, 33, 0, weights.shape[1] - 1])])


@needs_code
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("num_rows", [1, 2, 11, 12, 13, 97, 200])
def test_the_product_is_that_of_the_plain_weights(num_rows: int, sizes: tuple[int, int]) -> None:
    x, weights = random_bf16(num_rows, sizes[0], seed=1), random_bf16(*sizes)
    exact = np.asarray(x, np.float64) @ np.asarray(weights, np.float64)
    np.testing.assert_allclose(multiply(x, weights), exact, rtol=1e-5, atol=1e-4)


@needs_code
@pytest.mark.parametrize(
    "kind", [(16, 32, True), (16, 32, False), (8, 16, False)], ids=["bfloat16", "AVX-512", "AVX2"]
)
def test_the_product_is_the_same_on_every_kind_of_vectors(
    kind: tuple[int, int, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pallas_kernels import packed_matmul as operation
    from pallas_kernels.native import machine
    from pallas_kernels.packed_matmul import gated_kernel, kernel

    here, unit = machine.vector_unit(), machine.VectorUnit(*kind)
    assert here is not None
    if unit.lanes > here.lanes or unit.has_bfloat16 > here.has_bfloat16:
        pytest.skip("this CPU has no such vectors")
    names = {}
    for module in (kernel, gated_kernel):
        short = module.__name__.rpartition(".")[2]
        names[short] = f"test.packed_{short}.{'.'.join(map(str, kind))}"
        machine.register(names[short], lambda m, name, module=module: module.build(m, name, unit))
    monkeypatch.setattr(machine, "vector_unit", lambda: unit)
    monkeypatch.setattr(operation, "_target", names.get)
    for num_rows in (1, 7, 100):
        x, weights = random_bf16(num_rows, 130, seed=1), random_bf16(130, 77)
        exact = np.asarray(x, np.float64) @ np.asarray(weights, np.float64)
        np.testing.assert_allclose(multiply(x, weights), exact, rtol=1e-5, atol=1e-4)
        assert_is_silu_gate(x, random_bf16(130, 4 * panel_width()))


def assert_is_silu_gate(x: jax.Array, weights: jax.Array) -> None:
    """That the one kernel does what two products and an activation do, rounded once."""
    half = weights.shape[1] // 2
    gate, up = np.split(np.asarray(x, np.float64) @ np.asarray(weights, np.float64), [half], 1)
    result = jax.jit(packed_silu_gate)(x, pack(weights))
    assert result.dtype == jnp.bfloat16
    exact = gate / (1 + np.exp(-gate)) * up
    np.testing.assert_allclose(np.asarray(result, np.float64), exact, rtol=2**-8, atol=1e-4)


@needs_code
@pytest.mark.parametrize("num_rows", [1, 12, 13, 97, 200])
def test_silu_of_the_first_half_gates_the_second(num_rows: int) -> None:
    assert_is_silu_gate(random_bf16(num_rows, 64, seed=1), random_bf16(64, 6 * panel_width()))


@needs_code
def test_silu_is_finite_for_all_that_is_and_no_number_for_none() -> None:
    extremes = [0.0, -0.0, 1e-38, -1e-38, 88.0, -88.0, 3e38, -3e38, np.nan]
    x = jnp.asarray([[value, 1.0] for value in extremes], jnp.bfloat16)
    width = panel_width()
    weights = jnp.concatenate([jnp.ones((1, width)), jnp.zeros((1, width))])
    ups = jnp.concatenate([jnp.zeros((1, width)), jnp.ones((1, width))])
    both = jnp.concatenate([weights, ups], axis=1).astype(jnp.bfloat16)
    result = jax.jit(packed_silu_gate)(x[:-1], pack(both))
    expected = jax.nn.silu(x[:-1, :1].astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_allclose(
        np.asarray(result, np.float32),
        np.broadcast_to(np.asarray(expected, np.float32), result.shape),
        rtol=2**-7,
        atol=1e-37,
    )
    strange = np.asarray(jax.jit(packed_silu_gate)(x[-1:], pack(both)), np.float32)
    assert np.isnan(strange).all()


@needs_code
def test_a_row_comes_out_the_same_bit_for_bit_alone_and_among_others() -> None:
    x, weights = random_bf16(200, 576), random_bf16(576, 100)
    together = multiply(x, weights)
    for num_rows in (1, 2, 5, 12, 13, 96):
        np.testing.assert_array_equal(multiply(x[-num_rows:], weights), together[-num_rows:])


@needs_code
def test_numbers_that_are_none_stay_in_their_row() -> None:
    x, weights = random_bf16(30, 64), random_bf16(64, 50)
    poisoned = np.asarray(multiply(x.at[7].set(jnp.nan), weights))
    assert np.isnan(poisoned[7]).all()
    kept = np.arange(30) != 7
    np.testing.assert_array_equal(poisoned[kept], multiply(x, weights)[kept])


@needs_code
@pytest.mark.parametrize("num_live", [-3, 0, 1, 13, 95, 96, 97, 199, 200, 2**31 - 1])
def test_padding_is_not_read_and_comes_out_as_zeros(num_live: int) -> None:
    x, weights = random_bf16(200, 64, seed=1), random_bf16(64, 70)
    expected = multiply(x, weights).copy()
    is_padding = np.arange(200) >= num_live
    expected[is_padding] = 0.0
    poisoned = jnp.where(is_padding[:, None], jnp.nan, x)
    program = jax.jit(packed_matmul, static_argnums=2)
    result = program(poisoned, pack(weights), 70, jnp.int32(num_live))
    np.testing.assert_array_equal(result, expected)
    panels = pack(random_bf16(64, 2 * panel_width()))
    gated = np.asarray(packed_silu_gate(poisoned, panels, jnp.int32(num_live)), np.float32)
    expected = np.asarray(packed_silu_gate(x, panels), np.float32)
    np.testing.assert_array_equal(gated, np.where(is_padding[:, None], 0.0, expected))


@needs_code
def test_many_calls_at_once_do_not_meet() -> None:
    x, weights = random_bf16(24, 576), random_bf16(576, 2000)
    panels, expected = pack(weights), multiply(x, weights)
    program = jax.jit(packed_matmul, static_argnums=2).lower(x, panels, 2000).compile()
    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(lambda _: np.asarray(program(x, panels)), range(200)):
            np.testing.assert_array_equal(result, expected)


@needs_code
def test_a_call_with_other_arrays_is_an_error_and_no_crash() -> None:
    from pallas_kernels.packed_matmul.kernel import register_kernel

    x = random_bf16(2, 64)
    call = jax.ffi.ffi_call(register_kernel(), jax.ShapeDtypeStruct((2, 32), jnp.float32))
    with pytest.raises(jax.errors.JaxRuntimeError, match="takes 3 arrays and gives 1"):
        jax.block_until_ready(jax.jit(call)(x))


@needs_code
def test_what_cannot_be_packed_or_multiplied_says_why() -> None:
    assert "float32" in str(refuse((64, 64), jnp.float32))
    assert "(63, 64)" in str(refuse((63, 64), jnp.bfloat16))
    assert "(2, 64, 64)" in str(refuse((2, 64, 64), jnp.bfloat16))
    panels = pack(random_bf16(64, 50))
    with pytest.raises(ValueError, match="float32 rows"):
        packed_matmul(jnp.zeros((2, 64)), panels, 50)
    with pytest.raises(ValueError, match="rows of 62"):
        packed_matmul(random_bf16(2, 62), panels, 50)
    with pytest.raises(ValueError, match="do not hold 500"):
        packed_matmul(random_bf16(2, 64), panels, 500)
    with pytest.raises(ValueError, match="3 panels are not two halves"):
        packed_silu_gate(random_bf16(2, 64), pack(random_bf16(64, 3 * panel_width())))


def test_without_the_package_nothing_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    native.missing.cache_clear()
    try:
        assert "llvmlite is not installed" in str(refuse((64, 64), jnp.bfloat16))
        with pytest.raises(NoImplementation, match="llvmlite is not installed"):
            pack(random_bf16(64, 50))
    finally:
        native.missing.cache_clear()


PROGRAM = """
import sys, jax, jax.numpy as jnp
from pallas_kernels.packed_matmul import pack, packed_matmul
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
x, panels = jnp.ones((5, 64), jnp.bfloat16), pack(jnp.full((64, 96), 2, jnp.bfloat16))
events.clear()
program = jax.jit(lambda x, p: packed_matmul(x, p, 96)).lower(x, panels).compile()
print(events.count("/jax/compilation_cache/cache_hits"))
assert (program(x, panels) == 128).all()
"""


@needs_code
@pytest.mark.slow
def test_a_program_that_was_kept_on_disk_runs_in_another_process(tmp_path) -> None:
    hits = [
        int(subprocess.check_output([sys.executable, "-c", PROGRAM, str(tmp_path)]))
        for _ in range(2)
    ]
    assert hits == [0, 1]
