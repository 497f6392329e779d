"""Every spec of every operation through the real compilers, for chips that are not here.

A spec is compiled with one layer, which has all the kernels of many. Specs that are one program,
for they differ only in what the arrays hold, are compiled once. One TPU and one GPU get all specs.
The programs of the other TPUs differ in the sizes of tiles alone: they get one of each kind, and
whoever asks for it the rest (``test_every_other_pair_compiles``).
"""

import dataclasses
import re

import numpy as np
import pytest

from pallas_kernels import tile_table
from pallas_kernels.benchmark import lower_for, one_layer
from pallas_kernels.dispatch import NoImplementation
from pallas_kernels.grouped_matmul.bench import OPERATION as GROUPED
from pallas_kernels.latent_attention.bench import OPERATION as LATENT
from pallas_kernels.paging.rows import case_of
from pallas_kernels.ragged_paged_attention.bench import OPERATION as RAGGED
from pallas_kernels.tpu_chips import TPU_CHIPS
from tests.chips import REPORT

OPERATIONS = {operation.name: operation for operation in (RAGGED, LATENT, GROUPED)}
OTHER_TPUS = ["v5e", "v5p", "tpu7x"]
LIKE_ANOTHER = {
    *("smollm2-decode-8", "smollm2-decode-32", "smollm2-one-long"),
    *("llama3-8b-decode-16", "llama3-8b-decode-256", "llama3-8b-prefill-8k"),
    *("gpt-oss-window-at-512", "gpt-oss-window-at-8k", "mixtral-8x7b-decode"),
    *("qwen3-30b-a3b-down", "deepseek-v3-device-down", "gpt-oss-20b-down"),
    "olmoe-prefill",
}
"""Specs that differ from another one in sizes alone: slow, for whoever asks."""
KINDS = {
    "ragged_paged_attention": {
        "decode": "llama3-8b-decode",
        "prefill": "smollm2-prefill-512",
        "mixed": "gpt-oss-window-sinks",
    },
    "latent_attention": {
        "decode": "deepseek-v2-lite-decode",
        "prefill": "deepseek-v2-lite-prefill",
        "mixed": "deepseek-v2-lite-mixed",
    },
    "grouped_matmul": {"decode": "olmoe-decode", "prefill": "mixtral-8x7b-down"},
}
"""A spec of each kind."""

REFUSED = {
    "gpu": {"64-experts-int8": "weights of int8 with a scale are not implemented"},
    "tpu": {
        "gpt-oss-20b-decode": "D = 2880 is not a multiple of 128",
        "gpt-oss-20b-down": "D = 2880 is not a multiple of 128",
    },
}
"""Specs of grouped_matmul that a kind of chip leaves to plain XLA."""

TEMPORARIES = {"tpu": (4, 16 * 2**20), "gpu": (8, 32 * 2**20)}
"""A program's may be so many times what it is given besides pages and matrices, and this: queries
and results in the kernel's order and width, lists of work, and on a GPU the parts of rows that are
split. A pool or a stack of matrices copied is far more in the specs where these are large."""

VMEM_SHARE = {
    "ragged_paged_attention": 1 / 2,
    "latent_attention": 3 / 4,
    "grouped_matmul": 3 / 4,
}
"""Of the chip's vector memory, what a kernel may ask for."""

# Queries that come as arguments may be brought to VMEM in slices before the kernel starts; the
# compiler cannot tell what that costs, and its estimate of the program turns negative.
WHOLE = {"xla_tpu_sliced_prefetch_max_slices": "0"}
WITHOUT_ESTIMATE = {
    ("llama3-8b-prefill-8k", "tpu7x"),
    ("llama3-8b-prefill-16k", "tpu7x"),
    ("deepseek-v3-prefill", "tpu7x"),
}
"""Where the compiler leaves gathers, or another order in memory, of so many queries to the sparse
core, whose time it cannot tell."""

QUERY_BYTES, NEW_BYTES = 4 * 32 * 128 * 2, 16 * 8 * 256 * 2
ROUNDED_UP = {("llama3-8b-decode-256", "v5p"): 256 * (3 * QUERY_BYTES + NEW_BYTES)}
"""Bytes more for many rows of one token: in the kernel's order each has four tokens of queries,
which come, are turned and go as results, and a tile of sixteen new positions. Beside the kernel
they do not fit into the vector memory of a v5p, which is half of a v5e's and a v6e's."""

VMEM_LIMIT = re.compile(r"scoped_memory_configs[^}]*size\\22: (\d+)")


def programs(operation):
    """Names of specs, one for each program."""
    names = {}
    for name, spec in operation.every.items():
        spec = one_layer(spec)
        if operation is GROUPED:  # How rows fall on groups is known when it runs.
            spec = dataclasses.replace(spec, routing="random")
        names.setdefault(spec, name)
    return list(names.values())


def pairs(chips, *, of_each_kind=None, without=REFUSED["tpu"]):
    """Operation, spec and chip; ``of_each_kind``: only those of ``KINDS``, or all others."""
    return [
        pytest.param(
            operation.name,
            name,
            chip,
            id=f"{operation.name}-{name}-{chip}",
            marks=pytest.mark.slow if name in LIKE_ANOTHER else (),
        )
        for operation in OPERATIONS.values()
        for name in programs(operation)
        for chip in chips
        if of_each_kind in (None, name in KINDS[operation.name].values()) and name not in without
    ]


def lower(operation, name, mesh):
    """The program, its case, and what its kernels asked the table for, which must know it."""
    implementation = "tpu" if mesh.devices.flat[0].platform == "tpu" else "gpu"
    operation = OPERATIONS[operation]
    case = operation.case(one_layer(operation.every[name]), "bfloat16", implementation)
    with tile_table.trial(operation.name, None) as asked:
        lowered = lower_for(case, mesh)
    known = {entry.identity for entry in tile_table.read(operation.name)}
    assert asked.keys() <= known, "run python -m pallas_kernels.tune"
    return lowered, case, list(asked.values())


def assert_is_lean(compiled, case, implementation, rounded_up=0):
    """Pages are written in place, and nothing is copied or expanded that is large."""
    memory = compiled.memory_analysis()
    times, more = TEMPORARIES[implementation]
    large = 0
    if "page_size" in case.facts:
        large = memory.alias_size_in_bytes
        assert large >= case.num_bytes
    else:
        assert memory.temp_size_in_bytes < 2**20
    given = memory.argument_size_in_bytes - large
    assert memory.temp_size_in_bytes < times * given + more + rounded_up


def assert_it_compiles_for_tpu(operation, name, chip, mesh):
    lowered, case, questions = lower(operation, name, mesh)
    assert len(questions) == 1
    compiled = lowered.compile(compiler_options=WHOLE)
    text = compiled.as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 1
    # The compiler refuses a kernel that takes more than it asks for.
    (asked_for,) = set(VMEM_LIMIT.findall(lowered.as_text()))
    vmem_bytes = TPU_CHIPS[mesh.devices.flat[0].device_kind].vmem_bytes
    assert int(asked_for) <= vmem_bytes * VMEM_SHARE[operation]
    # Where nothing is known of a part, the sum is negative.
    if (name, chip) in WITHOUT_ESTIMATE:
        assert "sparsecore" in text
    else:
        assert compiled.cost_analysis()["optimal_seconds"] > 0
    assert_is_lean(compiled, case, "tpu", ROUNDED_UP.get((name, chip), 0))


def threads_of(operation, question):
    """Of a block of the GPU kernel: one warpgroup copies, the others compute."""
    tiles = question.tiles
    if operation == "ragged_paged_attention":
        return 128 * (1 + tiles.warpgroups(question.problem))
    return 128 * (1 + tiles.rows // 64 if operation == "grouped_matmul" else 4)


@pytest.mark.parametrize(("operation", "name", "chip"), pairs(["v6e"]))
def test_every_spec_compiles_for_one_tpu(operation, name, chip, tpu_mesh):
    assert_it_compiles_for_tpu(operation, name, chip, tpu_mesh(chip))


@pytest.mark.parametrize(("operation", "name", "chip"), pairs(OTHER_TPUS, of_each_kind=True))
def test_every_kind_compiles_for_the_other_tpus(operation, name, chip, tpu_mesh):
    assert_it_compiles_for_tpu(operation, name, chip, tpu_mesh(chip))


@pytest.mark.slow
@pytest.mark.parametrize(("operation", "name", "chip"), pairs(OTHER_TPUS, of_each_kind=False))
def test_every_other_pair_compiles(operation, name, chip, tpu_mesh):
    assert_it_compiles_for_tpu(operation, name, chip, tpu_mesh(chip))


@pytest.mark.parametrize(("operation", "name", "chip"), pairs(["sm_90a"], without=REFUSED["gpu"]))
def test_every_spec_compiles_for_hopper_in_registers(
    operation, name, chip, hopper_mesh, monkeypatch, capfd
):
    """That shared memory suffices is what compiling says: more than 227 KiB is an error."""
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTXAS", "1")
    lowered, case, questions = lower(operation, name, hopper_mesh)
    compiled = lowered.compile()
    said = "".join(capfd.readouterr())
    reports = [tuple(map(int, found)) for found in REPORT.findall(said)]
    assert len(reports) == len(questions) == compiled.as_text().count('_target="mosaic_gpu'), said
    assert "C7510" not in said, "products wait for each other"
    threads = min(threads_of(operation, question) for question in questions)
    for spill_stores, spill_loads, registers in reports:
        assert (spill_stores, spill_loads) == (0, 0), f"with {registers} registers"
        assert registers <= min(255, 65536 // threads)
    assert_is_lean(compiled, case, "gpu")


@pytest.mark.parametrize(("name", "reason"), REFUSED["gpu"].items())
def test_a_spec_that_hopper_refuses_is_refused_with_its_reason(name, reason, hopper_mesh):
    with pytest.raises(NoImplementation, match=reason):
        lower("grouped_matmul", name, hopper_mesh)


@pytest.mark.parametrize(("name", "reason"), REFUSED["tpu"].items())
def test_a_spec_that_a_tpu_refuses_is_refused_with_its_reason(name, reason, tpu_mesh):
    with pytest.raises(NoImplementation, match=reason):
        lower("grouped_matmul", name, tpu_mesh("v6e"))


@pytest.mark.parametrize("operation", [RAGGED, LATENT], ids=lambda operation: operation.name)
def test_the_specs_of_each_kind_are_what_they_are_called(operation):
    for kind, name in KINDS[operation.name].items():
        spec = operation.every[name]
        zones = spec.describe(np.random.default_rng(0))["distribution_3"]
        assert case_of(zones) == kind
        assert spec.is_of_one_kind == (kind != "mixed")  # Else nothing is known of it.
