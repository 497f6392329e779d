"""The rule by which an implementation is chosen."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

import pallas_kernels
from pallas_kernels import dispatch
from pallas_kernels.dispatch import NAMES, NoImplementation, choose
from pallas_kernels.ragged_paged_attention import page_sizes

V6E, H200, A100 = ("tpu", "TPU v6 lite"), ("gpu", "NVIDIA H200"), ("gpu", "NVIDIA A100")
CPU = ("cpu", "cpu")


def test_the_first_implementation_that_can_is_chosen():
    refusals = {"tpu": lambda: "no chip", "xla": lambda: None, "reference": lambda: None}
    assert choose("operation", refusals) == "xla"


def test_a_named_implementation_is_chosen_over_faster_ones():
    refusals = {"xla": lambda: None, "reference": lambda: None}
    assert choose("operation", refusals, "reference") == "reference"


def test_a_named_implementation_that_cannot_fails_with_its_reason():
    with pytest.raises(NoImplementation, match=r"operation .* xla: page too small$"):
        choose("operation", {"xla": lambda: "page too small", "reference": lambda: None}, "xla")


def test_when_none_can_every_implementation_has_a_reason():
    with pytest.raises(NotImplementedError) as error:
        choose("operation", {"xla": lambda: "no luck"})
    for reason in ("no tpu kernel in this build", "no gpu kernel", "xla: no luck", "no reference"):
        assert reason in str(error.value)


def test_an_unknown_name_is_refused_with_the_names_that_exist():
    with pytest.raises(ValueError, match=r"'cuda' is not one of None, tpu, gpu, xla, reference"):
        choose("operation", {}, "cuda")
    assert NAMES == ("tpu", "gpu", "xla", "reference")


def test_every_public_name_exists():
    assert all(hasattr(pallas_kernels, name) for name in pallas_kernels.__all__)


@pytest.fixture
def told_on(caplog):
    """``told_on(chip, call)``: what a call on a chip that is not here writes into the log."""
    dispatch._tell_of_fall.cache_clear()

    def warnings(chip, call):
        caplog.clear()
        platform, kind = chip
        device = AbstractDevice(device_kind=kind, num_cores=1, platform=platform)
        mesh = AbstractMesh((1,), ("chip",), abstract_device=device)
        with jax.sharding.use_abstract_mesh(mesh):
            jax.eval_shape(call)
        assert all(record.levelname == "WARNING" for record in caplog.records)
        return caplog.messages

    yield warnings
    dispatch._tell_of_fall.cache_clear()


def kv_pages(head_dim=64, dtype="bfloat16", page_size=64, **options):
    return lambda: pallas_kernels.init_kv_pages(3, page_size, 1, head_dim, dtype, **options)


def latent_pages():
    return pallas_kernels.init_latent_pages(3, 64, 512, 64, "float16")


def product():
    x_TD, w_EDF = jnp.zeros((8, 72)), jnp.zeros((2, 72, 128))
    return pallas_kernels.grouped_matmul(x_TD, w_EDF, jnp.asarray([3, 4], jnp.int32))


FALLS = {
    "head dim on Hopper": (H200, kv_pages(72), "ragged_paged_attention", "head_dim = 72"),
    "float16 on TPU": (V6E, kv_pages(dtype="float16"), "ragged_paged_attention", "float16"),
    "float16 latents on TPU": (V6E, latent_pages, "latent_attention", "float16"),
    "products of odd depth on TPU": (V6E, product, "grouped_matmul", "72"),
    "an older GPU": (
        A100,
        kv_pages(),
        "ragged_paged_attention",
        "A100 (gpu), not a Hopper GPU (H100, H200",
    ),
}


@pytest.mark.parametrize(("chip", "call", "operation", "reason"), FALLS.values(), ids=FALLS)
def test_who_falls_to_a_slower_implementation_is_told_why_and_once(
    chip, call, operation, reason, told_on
):
    [message] = told_on(chip, call)
    platform, kind = chip
    assert message.startswith(f"{operation} runs as xla on {kind}, not as the {platform} kernel: ")
    assert reason in message
    assert told_on(chip, call) == []


def test_who_gets_the_reference_is_told_on_any_chip(told_on):
    sizes = "page_size = 24 is not one of 8, 16, 32, 64, 128, 256"
    [message] = told_on(CPU, kv_pages(page_size=24))
    assert message == f"ragged_paged_attention runs as reference on cpu, not as xla: {sizes}"
    [message] = told_on(V6E, kv_pages(page_size=24))
    assert message == (
        "ragged_paged_attention runs as reference on TPU v6 lite, not as the tpu kernel: page_size"
        f" = 24 is not a power of two from 16 on, for bfloat16; not as xla: {sizes}"
    )
    assert told_on(CPU, kv_pages(page_size=24, implementation="reference")) == []


def latents_on(pages, name):
    none = jnp.zeros((1,), jnp.int32)
    return pallas_kernels.latent_attention(
        jnp.zeros((1, 1, 512), jnp.bfloat16),
        jnp.zeros((1, 1, 64), jnp.bfloat16),
        None,
        None,
        pages,
        none,
        jnp.zeros((1, 1), jnp.int32),
        jnp.zeros((2,), jnp.int32),
        jnp.zeros((3,), jnp.int32),
        scale=1.0,
        implementation=name,
    )


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="its own chip may be here")
@pytest.mark.parametrize(("name", "needs"), [("tpu", "a TPU"), ("gpu", r"a Hopper GPU \(H100")])
def test_a_kernel_named_where_its_chip_is_not_is_refused_when_it_runs(name, needs):
    here = rf"cannot run as {name} here: the chip is cpu \(cpu\), not {needs}.*interpret=True"
    x_TD, w_EDF = jnp.zeros((8, 128), jnp.bfloat16), jnp.zeros((2, 128, 128), jnp.bfloat16)
    with pytest.raises(NoImplementation, match=f"grouped_matmul {here}"):
        pallas_kernels.grouped_matmul(
            x_TD, w_EDF, jnp.asarray([3, 4], jnp.int32), implementation=name
        )
    with pytest.raises(NoImplementation, match=f"ragged_paged_attention {here}"):
        call_on(kv_pages(implementation=name)(), head_dim=64, implementation=name)
    with pytest.raises(NoImplementation, match=f"latent_attention {here}"):
        latents_on(pallas_kernels.init_latent_pages(3, 64, 512, 64, "bfloat16", name), name)


def test_another_reason_is_told_as_well(told_on):
    assert told_on(H200, kv_pages(72)) != told_on(H200, kv_pages(72, page_size=32)) != []


def test_nobody_is_told_of_what_is_no_fall(told_on):
    assert told_on(H200, kv_pages()) == []
    assert told_on(H200, kv_pages(72, implementation="xla")) == []
    assert told_on(CPU, kv_pages(72)) == []
    # Which sizes there are is a question, not a call.
    assert told_on(H200, lambda: page_sizes(64, "bfloat16") and ()) == []
    # Nor is a call on pages that were made before.
    assert told_on(H200, lambda: call_on(kv_pages(72, implementation="xla")())) == []


def call_on(pages, head_dim=72, **options):
    none = jnp.zeros((1,), jnp.int32)
    return pallas_kernels.ragged_paged_attention(
        jnp.zeros((1, 1, head_dim)),
        None,
        None,
        pages,
        none,
        jnp.zeros((1, 1), jnp.int32),
        jnp.zeros((2,), jnp.int32),
        jnp.zeros((3,), jnp.int32),
        scale=1.0,
        **options,
    )


def test_who_imports_the_operations_loads_no_kernel_language():
    code = "import sys, pallas_kernels; assert 'jax.experimental.pallas' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
