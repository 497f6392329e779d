"""Layouts and formats change where weights lie, never what they are."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from jaxinfer.errors import CapacityError, CheckpointError, InvalidParameter
from jaxinfer.models.layout import for_decoding
from jaxinfer.models.loading import dummy_model, load_model, restore_model, save_model
from jaxinfer.models.model import Model, blank_model
from jaxinfer.models.registry import model_config
from jaxinfer.ops.blocked import BlockedEmbedding, BlockedKernel, block
from jaxinfer.ops.joined import JoinedKernel
from jaxinfer.ops.linear import linear, look_up, tied_head
from jaxinfer.ops.packed import pack_embedding, pack_kernel
from pallas_kernels import native
from sharding import make_mesh
from tests.models.golden_case import CASES

CONFIG = {
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}


needs_code = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))


def tiny(config: dict = CONFIG, devices: int = 1, **options: object) -> Model:
    return dummy_model(model_config(config), mesh=make_mesh({"model": devices}), **options)


def random_bf16(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape), jnp.bfloat16)


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_a_blocked_kernel_multiplies_as_the_plain_one(rows: int) -> None:
    x, kernel = random_bf16(rows, 576), random_bf16(576, 192)
    both = BlockedKernel(kernel, block(kernel))
    assert both.shape == kernel.shape
    exact = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    np.testing.assert_allclose(jax.jit(linear)(x, both), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rows", [2, 8])
def test_a_blocked_embedding_looks_up_and_multiplies_as_the_plain_one(rows: int) -> None:
    hidden, table = random_bf16(rows, 576), random_bf16(128, 576)
    both = BlockedEmbedding(table, block(table.T))
    ids = jnp.asarray([0, 127, 5], jnp.int32)
    np.testing.assert_array_equal(look_up(both, ids), look_up(table, ids))
    np.testing.assert_allclose(
        tied_head(hidden, both), tied_head(hidden, table), rtol=1e-4, atol=1e-4
    )


def test_kernels_are_blocked_for_a_few_rows_of_bfloat16_on_one_cpu_that_packs_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "missing", lambda: "left out by this test")

    def is_blocked(model: Model, num_slots: int) -> bool:
        return for_decoding(model, num_slots).weight_bytes > model.weight_bytes

    wide = CONFIG | {"hidden_size": 128}
    assert is_blocked(tiny(wide), 2)
    assert not is_blocked(tiny(wide), 8)
    assert not is_blocked(tiny(wide, dtype="float32"), 2)
    assert not is_blocked(tiny(wide, devices=2), 2)


@needs_code
@pytest.mark.parametrize("num_slots", [1, 8])
def test_kernels_are_packed_for_any_rows_of_bfloat16_on_one_cpu_only(num_slots: int) -> None:
    model = tiny(CONFIG)
    packed = for_decoding(model, num_slots)
    assert packed.is_packed
    assert not packed.is_blocked
    assert packed.weight_bytes == model.weight_bytes
    assert not for_decoding(tiny(CONFIG, dtype="float32"), num_slots).is_packed
    assert not for_decoding(tiny(CONFIG, devices=2), num_slots).is_packed
    blank = for_decoding(model.shapes, num_slots)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), blank.params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), packed.params
    )


@needs_code
@pytest.mark.parametrize("rows", [1, 3])
def test_a_packed_kernel_multiplies_as_the_plain_one(rows: int) -> None:
    kernel = random_bf16(576, 190)
    packed = pack_kernel(kernel)
    assert packed.shape == kernel.shape
    for x in (random_bf16(rows, 576), random_bf16(2, rows, 576), jnp.ones((rows, 576))):
        product = jax.jit(linear)(x, packed)
        assert (product.shape, product.dtype) == ((*x.shape[:-1], 190), jnp.float32)
        exact = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
        np.testing.assert_allclose(product, exact, rtol=1e-5, atol=1e-4)


@needs_code
def test_a_packed_embedding_looks_up_and_multiplies_as_the_plain_one() -> None:
    hidden, table = random_bf16(3, 576), random_bf16(130, 576)
    packed, ids = pack_embedding(table), jnp.asarray([0, 129, 5, 1000, -2], jnp.int32)
    np.testing.assert_array_equal(look_up(packed, ids), table[jnp.clip(ids, 0, 129)])
    np.testing.assert_allclose(
        tied_head(hidden, packed), tied_head(hidden, table), rtol=1e-4, atol=1e-4
    )


def test_kernels_of_one_input_are_joined_on_one_device_only(hopper_mesh: Mesh) -> None:
    def joined(model: Model) -> int:
        leaves = jax.tree.leaves(
            for_decoding(model, 8).params, is_leaf=lambda node: isinstance(node, JoinedKernel)
        )
        return sum(isinstance(leaf, JoinedKernel) for leaf in leaves)

    model = tiny(CONFIG)
    assert joined(model) == 2 * len(model.config.layers)
    assert for_decoding(model, 8).weight_bytes == model.weight_bytes
    assert joined(tiny(CONFIG, devices=2)) == 0
    gpu = Mesh(hopper_mesh.devices.reshape(1, 1), ("data", "model"))
    blank = blank_model(model.config, mesh=gpu)
    assert joined(blank) == joined(model)
    assert for_decoding(blank, 8).weight_bytes == model.weight_bytes


def test_a_released_model_gives_up_its_kernels_as_they_are_joined() -> None:
    kept, released = tiny(CONFIG), tiny(CONFIG)
    before = released.weight_bytes
    joined = for_decoding(released, 8, release=True)
    assert joined.weight_bytes == before
    names = {name for layer in released.params["layers"].values() for name in layer["mixer"]["q"]}
    assert "kernel" not in names
    for one, other in zip(
        jax.tree.leaves(joined.params),
        jax.tree.leaves(for_decoding(kept, 8).params),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    assert kept.weight_bytes == before


def test_blocks_hold_the_kernels_columns_in_their_order() -> None:
    kernel = random_bf16(72, 192)
    blocks = np.asarray(block(kernel))
    np.testing.assert_array_equal(np.concatenate(list(blocks), axis=1), kernel)


@pytest.mark.parametrize("devices", [1, 2])
def test_an_orbax_checkpoint_restores_the_same_model_on_any_mesh(
    tmp_path: Path, four_devices: list[jax.Device], devices: int
) -> None:
    saved = tiny()
    save_model(saved, tmp_path / "model", CONFIG)
    restored = restore_model(tmp_path / "model", mesh=make_mesh({"model": devices}))
    assert restored.config == saved.config
    jax.tree.map(np.testing.assert_array_equal, restored.params, saved.params)
    kernel = restored.params["layers"][0]["mlp"]["up"]["kernel"]
    assert len(kernel.sharding.device_set) == devices


def test_an_orbax_checkpoint_of_another_shape_is_refused(tmp_path: Path) -> None:
    save_model(tiny(), tmp_path / "model", CONFIG | {"intermediate_size": 192})
    with pytest.raises(CheckpointError, match=r"mlp.*kernel"):
        restore_model(tmp_path / "model", mesh=make_mesh())


@pytest.mark.parametrize("sizes", [{"data": 2}, {"model": 2}, {"data": 2, "model": 2}])
def test_the_weights_of_a_device_are_those_of_its_shards(
    four_devices: list[jax.Device], sizes: dict[str, int]
) -> None:
    model = dummy_model(model_config(CONFIG), mesh=make_mesh(sizes))
    leaves = jax.tree.leaves(model.params)
    assert model.device_weight_bytes == sum(x.addressable_shards[0].data.nbytes for x in leaves)
    assert model.weight_bytes == tiny().weight_bytes
    if "model" not in sizes:
        assert model.device_weight_bytes == model.weight_bytes


def test_weights_are_made_where_a_device_has_room_for_its_part(
    four_devices: list[jax.Device],
) -> None:
    room = tiny().weight_bytes - 1
    assert tiny(devices=2, room=room).num_params == tiny().num_params
    assert tiny(room=room + 1).num_params == tiny().num_params
    with pytest.raises(CapacityError, match=rf"{room + 1:,} bytes .* bfloat16, and {room:,} may"):
        tiny(room=room)


def test_weights_without_room_are_refused_before_they_are_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny()
    save_model(model, tmp_path / "model", CONFIG)
    room, mesh = model.weight_bytes, make_mesh()
    assert restore_model(tmp_path / "model", mesh=mesh, room=room).num_params == model.num_params
    monkeypatch.setattr("jaxinfer.models.loading.restore_params", None)
    with pytest.raises(CapacityError, match="take a smaller model or dtype, more devices"):
        restore_model(tmp_path / "model", mesh=mesh, dtype="float32", room=room)


def test_weights_without_room_are_refused_before_they_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = CASES[0].source
    room = load_model(source, mesh=make_mesh(), dtype="bfloat16").weight_bytes
    monkeypatch.setattr(source, "read", None)
    with pytest.raises(CapacityError, match=f"float32, and {room:,} may be used"):
        load_model(source, mesh=make_mesh(), dtype="float32", room=room)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"dtype": "int7"}, "int7"), ({"max_len": 65}, "65"), ({"max_len": 1}, "max_model_len = 1")],
)
def test_a_dtype_or_length_that_is_not_allowed_is_named(options: dict, named: str) -> None:
    with pytest.raises(InvalidParameter, match=named):
        tiny(**options)
