"""Whole steps of a real model, compiled for chips that are not here, and the memory they take."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from jax.sharding import Mesh

from jaxinfer.cache import fast_page_sizes, layer_groups
from jaxinfer.config import ModelConfig
from jaxinfer.decoding.programs import ProgramShapes, ProgramTable
from jaxinfer.engine import build
from jaxinfer.models.layout import for_decoding
from jaxinfer.models.model import blank_model
from jaxinfer.models.registry import model_config
from jaxinfer.ops.joined import JoinedKernel
from jaxinfer.presets import find_config
from pallas_kernels.ragged_paged_attention.gpu_pages import GpuKVPages
from pallas_kernels.ragged_paged_attention.tpu_pages import TpuKVPages

STEPS = ("decode/1", "prefill/512")
LAYERS, WIDTH, VOCAB, SLOTS, PAGES, PAGE_SIZE = 32, 4096, 128256, 64, 2000, 64
POOL_BYTES = LAYERS * PAGES * PAGE_SIZE * 2 * 8 * 128 * 2
TEMPORARY_BYTES = {"decode/1": 64 * 2**20, "prefill/512": 192 * 2**20}
"""Logits of all slots take 31 MiB; activations of 512 tokens a few times 8 and 28 MiB."""


def llama_for(mesh: Mesh) -> ProgramTable:
    config = model_config(find_config("llama-3.1-8b"))
    assert (len(config.layers), config.width, config.vocab_size) == (LAYERS, WIDTH, VOCAB)
    return table_for(config, mesh)


def two_layers_of_qwen3_moe_for(mesh: Mesh) -> ProgramTable:
    """128 experts of 768, of which a token goes to 8."""
    config = model_config(find_config("qwen3-30b-a3b"))
    return table_for(replace(config, layers=config.layers[:2]), mesh)


def table_for(config: ModelConfig, mesh: Mesh, num_slots: int = SLOTS) -> ProgramTable:
    blank = blank_model(config, mesh=mesh, dtype="bfloat16", max_len=8192)
    model = for_decoding(blank, num_slots)
    shapes = ProgramShapes(
        num_slots=num_slots,
        pages_per_sequence=8192 // PAGE_SIZE,
        page_size=PAGE_SIZE,
        num_pages=(PAGES,) * len(layer_groups(config)),
        kv_dtype="bfloat16",
        prefill_tokens=(512,),
        copies=0,
    )
    return ProgramTable(model, shapes)


def check_memory(table: ProgramTable, name: str, devices: int = 1) -> None:
    """Weights and pages once, the pages updated in place, and little beside them."""
    memory = table[name].memory_analysis()
    given = table.model.device_weight_bytes + POOL_BYTES // devices
    assert given <= memory.argument_size_in_bytes < given + 4 * 2**20
    assert memory.alias_size_in_bytes == POOL_BYTES // devices
    assert memory.temp_size_in_bytes < TEMPORARY_BYTES[name]


@pytest.mark.parametrize("name", STEPS)
def test_llama_8b_on_four_tpus_exchanges_activations_and_never_weights_or_pages(name, tpu_mesh):
    table = llama_for(tpu_mesh("v6e", 4, ("data", "model")))
    table.compile(only=[name])
    check_memory(table, name, devices=4)
    found = re.findall(
        r"= (\w+)\[([\d,]*)\]\S* (all-\w+|reduce-scatter)(?:-start)?\(", text(table, name)
    )
    counted = Counter(kind for _, _, kind in found)
    # Two a layer and one for the embedding; the logits, which are sampled from in one place.
    assert counted == {"all-reduce": 2 * LAYERS + 1, "all-gather": 1}
    largest = max(size(shape) for _, shape, _ in found)
    assert largest <= max(SLOTS * VOCAB, 512 * WIDTH)


@pytest.mark.parametrize("name", STEPS)
def test_llama_8b_on_one_gpu(name, hopper_mesh):
    mesh = Mesh(hopper_mesh.devices.reshape(1, 1), ("data", "model"))
    table = llama_for(mesh)
    table.compile(only=[name])
    check_memory(table, name)
    assert text(table, name).count('custom_call_target="mosaic_gpu') >= LAYERS


@pytest.mark.parametrize(
    ("preset", "name", "num_slots"),
    [
        ("llama-3.1-8b", "decode/1", 2),
        ("llama-3.1-8b", "decode/1", 64),
        ("llama-3.1-8b", "prefill/512", 64),
        ("llama-3.1-8b", "sample", 64),
        *(
            pytest.param(preset, name, 64, marks=pytest.mark.slow)
            for preset in ("deepseek-v2-lite", "gpt-oss-20b", "gemma3-270m")
            for name in STEPS
        ),
    ],
)
def test_a_step_on_a_gpu_is_one_graph_of_few_kernels(
    preset, name, num_slots, hopper_mesh, tmp_path
):
    """Two layers. What is no part of the graph is launched by itself; at a loop or a branch that
    is none the host waits for the device."""
    config = model_config(find_config(preset))
    mesh = Mesh(hopper_mesh.devices.reshape(1, 1), ("data", "model"))
    table = table_for(replace(config, layers=config.layers[:2]), mesh, num_slots)
    launched = launches(table, name, tmp_path)
    assert [line for line in launched if line[0].isdigit()] == launched[:1]
    assert "kCommandBuffer" in launched[0]
    if preset == "llama-3.1-8b" and name.startswith("decode/"):
        calls = [place for place, line in enumerate(launched) if "kCustomCall" in line]
        # Attention, with its write, queries and join; two norms; four products, two of them with a
        # sum of their own, and the activation.
        assert len(calls) == 2
        assert calls[1] - calls[0] <= 14


@pytest.mark.parametrize("releases_weights", [True, False])
def test_an_engine_on_a_gpu_joins_kernels_that_it_may_release_and_computes_two_rows(
    releases_weights, hopper_mesh, monkeypatch
):
    """A quarter of this room is less than the weights, of which only a layer lies twice."""
    monkeypatch.setattr(build, "usable_memory", lambda *_: 54 * 10**9)
    mesh = Mesh(hopper_mesh.devices.reshape(1, 1), ("data", "model"))
    config = model_config(find_config("llama-3.1-8b"))
    blank = blank_model(config, mesh=mesh, max_len=8192)
    builder = build.EngineBuilder(blank, max_num_seqs=1, releases_weights=releases_weights)
    leaves = jax.tree.leaves(
        builder.lay_out(blank).params, is_leaf=lambda node: isinstance(node, JoinedKernel)
    )
    joined = sum(isinstance(leaf, JoinedKernel) for leaf in leaves)
    assert joined == (2 * LAYERS if releases_weights else 0)
    assert builder._num_slots == 2


def launches(table: ProgramTable, name: str, folder: Path) -> list[str]:
    """What a program launches, a line each; what is in a graph of kernels is indented."""
    with jax.set_mesh(table.model.mesh):
        lowered = table._lowerings()[name]()
    lowered.compile({"xla_dump_to": str(folder), "xla_dump_hlo_as_text": True})
    (dumped,) = folder.glob("*.thunk_sequence_after_thunk_passes.txt")
    return [line for line in dumped.read_text().splitlines() if line.strip()]


def test_experts_on_two_tpus_exchange_one_sum_and_their_weights_are_not_copied(tpu_mesh):
    table = two_layers_of_qwen3_moe_for(tpu_mesh("v6e", 2, ("data", "model")))
    table.compile(only=["decode/1"])
    # 64 tokens, each 8 times, in and out in float32, are a few MiB; the weights are 1782.
    assert table["decode/1"].memory_analysis().temp_size_in_bytes < 16 * 2**20
    found = re.findall(r" (all-\w+|reduce-scatter)(?:-start)?\(", text(table, "decode/1"))
    assert Counter(found) == {"all-reduce": 2 * 2 + 1, "all-gather": 1}
    # In each layer attention, gate, up and down.
    assert text(table, "decode/1").count('custom_call_target="tpu_custom_call"') == 2 * 4


@pytest.mark.parametrize(
    ("name", "temporaries"),
    [("decode/1", 16), pytest.param("prefill/512", 64, marks=pytest.mark.slow)],
)
def test_experts_on_one_gpu(name, temporaries, hopper_mesh):
    mesh = Mesh(hopper_mesh.devices.reshape(1, 1), ("data", "model"))
    table = two_layers_of_qwen3_moe_for(mesh)
    table.compile(only=[name])
    # 512 tokens, each 8 times, as they go in and out: 16 and 32 MiB; the weights are 3564.
    assert table[name].memory_analysis().temp_size_in_bytes < temporaries * 2**20
    assert text(table, name).count('custom_call_target="mosaic_gpu') >= 2 * 4


@pytest.mark.parametrize(
    ("name", "calls"), [("decode/1", 1), pytest.param("prefill/512", 2, marks=pytest.mark.slow)]
)
def test_latents_on_two_tpus_are_attended_to_in_place(name, calls, tpu_mesh):
    """DeepSeek-V2-Lite's first layer. A long prefill writes by a call of its own, then attends."""
    config = model_config(find_config("deepseek-v2-lite"))
    table = table_for(
        replace(config, layers=config.layers[:1]), tpu_mesh("v6e", 2, ("data", "model"))
    )
    table.compile(only=[name])
    assert text(table, name).count('custom_call_target="tpu_custom_call"') == calls
    memory = table[name].memory_analysis()
    # A position takes 640 lanes of the 512 + 64 that it needs, on both devices.
    assert memory.alias_size_in_bytes == PAGES * PAGE_SIZE * 640 * 2
    assert memory.temp_size_in_bytes < TEMPORARY_BYTES[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_attention_in_chunks_is_the_chips_own_kernel(name, tpu_mesh, hopper_mesh):
    """Two layers of Llama-3.1-8B, that see no more than their own half of the context."""
    config = model_config(find_config("llama-3.1-8b"))
    layer = config.layers[0]
    chunked = replace(layer, mixer=replace(layer.attention, chunk=4096))
    hopper = Mesh(hopper_mesh.devices.reshape(1, 1), ("data", "model"))
    for mesh, call in (
        (tpu_mesh("v6e", 1, ("data", "model")), "tpu_custom"),
        (hopper, "mosaic_gpu"),
    ):
        table = table_for(replace(config, layers=(chunked, chunked)), mesh)
        table.compile(only=[name])
        memory = table[name].memory_analysis()
        assert memory.alias_size_in_bytes == POOL_BYTES * 2 // LAYERS
        assert memory.temp_size_in_bytes < TEMPORARY_BYTES[name]
        assert text(table, name).count(f'custom_call_target="{call}') >= 2


def test_the_cache_has_the_layout_of_the_chip_and_the_page_sizes_of_its_kernel(
    tpu_mesh, hopper_mesh
):
    layouts = {
        TpuKVPages: tpu_mesh("v6e", 1, ("data", "model")),
        GpuKVPages: Mesh(hopper_mesh.devices.reshape(1, 1), ("data", "model")),
    }
    sizes = []
    for layout, mesh in layouts.items():
        table = llama_for(mesh)
        _, cache, _ = table._arguments
        assert {type(pages) for pages in cache} == {layout}
        with jax.set_mesh(mesh):
            sizes.append(fast_page_sizes(table.model.config, "bfloat16"))
    assert sizes == [(16, 32, 64, 128, 256), (64, 128, 256)]


def text(table: ProgramTable, name: str) -> str:
    return table[name].as_text()


def size(shape: str) -> int:
    total = 1
    for side in shape.split(","):
        total *= int(side or 1)
    return total
