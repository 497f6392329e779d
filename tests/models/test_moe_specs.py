"""Mixtures of experts in specs and configs: what is read, what is refused and by which name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxinfer.config import LongropeScaling, MlpSpec, MoeSpec, RouterSpec
from jaxinfer.errors import ConfigError, Unsupported
from jaxinfer.layers.moe import Moe
from jaxinfer.layers.parameter import fan_in_of_each
from jaxinfer.models.layout import for_decoding
from jaxinfer.models.loading import load_model
from jaxinfer.models.model import blank_model
from jaxinfer.models.registry import model_config
from jaxinfer.ops.joined import JoinedKernel
from jaxinfer.ops.rope import frequencies
from sharding import make_mesh
from tests.models.dict_source import DictSource
from tests.models.golden_case import GoldenCase


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scores": "tanh"}, "router scores = 'tanh'.*one of softmax, sigmoid, sparsemixer"),
        ({"group_score": "mean"}, "router group_score = 'mean'.*one of max, top2"),
        ({"num_experts": 0}, "num_experts = 0"),
        ({"top_k": 13}, "top_k = 13.*at most num_experts = 12"),
        ({"num_groups": 5}, "num_groups = 5.*a divisor of num_experts = 12"),
        ({"num_groups": 4, "top_groups": 5}, "top_groups = 5.*at most num_groups = 4"),
        ({"num_groups": 4, "top_groups": 1, "top_k": 4}, "top_k = 4.*at most 3, the experts of"),
        ({"num_groups": 12, "top_groups": 9, "group_score": "top2"}, "num_groups = 12.*two exp"),
        ({"scale": 0.0}, "scale = 0.0"),
        ({"jitter": -0.1}, "jitter = -0.1"),
        ({"scores": "sparsemixer", "renormalize": False, "top_k": 3}, "top_k of 'sparsemixer' = 3"),
        ({"scores": "sparsemixer"}, "without renormalize"),
    ],
)
def test_a_router_that_cannot_be_is_refused_by_the_name_of_its_field(fields, message):
    with pytest.raises(ConfigError, match=message):
        RouterSpec(**{"num_experts": 12, "top_k": 2} | fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"limit": 0.0}, "limit = 0.0"),
        ({"swish_beta": -1.0}, "swish_beta = -1.0"),
        ({"swish_beta": 1.5, "activation": "gelu"}, "swish_beta = 1.5.*but for 'silu'"),
        ({"limit": 7.0, "gated": False}, "limit and up_offset"),
        ({"up_offset": 1.0, "gated": False}, "limit and up_offset"),
    ],
)
def test_an_mlp_that_cannot_be_is_refused_by_the_name_of_its_field(fields, message):
    with pytest.raises(ConfigError, match=message):
        MlpSpec(**{"width": 8} | fields)


def test_a_gate_without_a_shared_expert_is_refused():
    with pytest.raises(ConfigError, match="shared_gate = True"):
        MoeSpec(
            router=RouterSpec(num_experts=2, top_k=1), expert=MlpSpec(width=8), shared_gate=True
        )


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("mixtral", {"num_local_experts": 0}, "num_local_experts = 0"),
        ("mixtral", {"num_local_experts": 10**6}, "num_local_experts = 1000000.*1 to 4096"),
        ("mixtral", {"num_experts": 5}, "num_experts = 5.*num_local_experts = 4"),
        ("mixtral", {"num_experts_per_tok": 5}, "num_experts_per_tok = 5.*num_local_experts = 4"),
        ("mixtral", {"num_experts_per_tok": True}, "num_experts_per_tok = True"),
        ("mixtral", {"hidden_act": "swiglu"}, "hidden_act = 'swiglu'"),
        ("qwen3_moe", {"moe_intermediate_size": None}, "moe_intermediate_size is missing"),
        ("qwen3_moe", {"mlp_only_layers": 1}, "mlp_only_layers = 1.*a list of numbers of layers"),
        ("qwen3_moe", {"mlp_only_layers": ["1"]}, "mlp_only_layers = "),
        ("qwen3_moe", {"mlp_only_layers": [99]}, r"mlp_only_layers = \[99\].*from 0 to 2"),
        ("qwen2_moe", {"mlp_only_layers": [-1]}, r"mlp_only_layers = \[-1\].*from 0 to 3"),
        ("qwen2_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step = 0"),
        ("qwen2_moe", {"norm_topk_prob": 1}, "norm_topk_prob = 1.*true or false"),
        ("olmoe", {"clip_qkv": -8.0}, "clip_qkv = -8.0.*above 0"),
        ("granitemoe", {"shared_intermediate_size": 8}, "shared_intermediate_size = 8"),
        ("phimoe", {"num_experts_per_tok": 3}, "num_experts_per_tok = 3"),
        ("phimoe", {"router_jitter_noise": -1.0}, "router_jitter_noise = -1.0"),
        ("glm4_moe", {"n_group": 3}, "n_group = 3.*a divisor of the 8 experts"),
        ("glm4_moe", {"n_group": 8, "topk_group": 8}, "n_group = 8.*at least 2 in a group"),
        ("glm4_moe", {"topk_group": 5}, "topk_group = 5.*at most n_group = 4"),
        ("glm4_moe", {"topk_group": 1}, "topk_group = 1.*with 3 experts to choose among"),
        ("glm4_moe", {"first_k_dense_replace": -1}, "first_k_dense_replace = -1"),
        ("glm4_moe", {"scoring_func": "softmax"}, "scoring_func = 'softmax'"),
        ("ernie4_5_moe", {"moe_k": 7}, "moe_k = 7.*moe_num_experts = 6"),
        ("ernie4_5_moe", {"num_experts_per_tok": 2}, "num_experts_per_tok = 2.*None or 3"),
        ("ernie4_5_moe", {"use_bias": True}, "use_bias = True"),
        ("ernie4_5_moe", {"moe_gate": "dense"}, "moe_gate = 'dense'"),
        ("ernie4_5_moe", {"moe_layer_start_index": -1}, "moe_layer_start_index = -1"),
        ("gpt_oss", {"experts_per_token": 2}, "experts_per_token = 2.*None or 3"),
        ("gpt_oss", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ("gpt_oss", {"swiglu_limit": 0.0}, "swiglu_limit = 0.0"),
        (
            "gpt_oss",
            {"quantization_config": {"quant_method": "mxfp4", "bits": 3}},
            "quantization_config.bits = 3",
        ),
        ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob = True.*False"),
        ("deepseek_v2", {"scoring_func": "sigmoid"}, "scoring_func = 'sigmoid'.*'softmax'"),
        ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method = 'noaux_tc'.*one of greedy"),
        ("deepseek_v2", {"moe_layer_freq": 2}, "moe_layer_freq = 2"),
        ("deepseek_v2_groups", {"n_group": 3}, "n_group = 3.*a divisor of the 8 experts"),
        ("deepseek_v3", {"topk_method": "greedy"}, "topk_method = 'greedy'.*'noaux_tc'"),
        ("deepseek_v3", {"topk_group": 5}, "topk_group = 5.*at most n_group = 4"),
    ],
)
def test_experts_that_a_family_cannot_have_are_refused_by_the_field(name, fields, message):
    with pytest.raises(ConfigError, match=message):
        model_config({**GoldenCase(name).config, **fields})


@pytest.mark.parametrize(
    ("name", "fields", "layers"),
    [
        ("mixtral", {}, "EEE"),
        ("qwen3_moe", {}, "EDE"),
        ("qwen3_moe", {"mlp_only_layers": []}, "EEE"),
        ("qwen3_moe", {"decoder_sparse_step": 3}, "DDE"),
        ("qwen3_moe", {"decoder_sparse_step": 9}, "DDD"),
        ("qwen2_moe", {}, "DEDE"),
        ("glm4_moe", {}, "DEE"),
        ("glm4_moe", {"first_k_dense_replace": 0}, "EEE"),
        ("ernie4_5_moe", {}, "DED"),
        ("ernie4_5_moe", {"moe_layer_start_index": 0, "moe_layer_end_index": -1}, "EEE"),
        ("ernie4_5_moe", {"moe_layer_interval": 2, "moe_layer_end_index": 2}, "DED"),
    ],
)
def test_experts_are_in_the_layers_that_have_them(name, fields, layers):
    config = model_config({**GoldenCase(name).config, **fields})
    found = ["E" if isinstance(layer.mlp, MoeSpec) else "D" for layer in config.layers]
    assert "".join(found) == layers


def test_the_experts_of_glm_are_read_as_they_stand():
    moe = model_config(GoldenCase("glm4_moe").config).layers[1].mlp
    assert moe == MoeSpec(
        router=RouterSpec(
            num_experts=8,
            top_k=3,
            scores="sigmoid",
            correction=True,
            scale=1.5,
            num_groups=4,
            top_groups=2,
            group_score="top2",
        ),
        expert=MlpSpec(width=24),
        shared=MlpSpec(width=48),
    )


def test_layers_of_gpt_oss_have_a_window_in_turn_where_nothing_else_is_said():
    config = model_config({**GoldenCase("gpt_oss").config, "layer_types": None})
    assert [layer.mixer.window for layer in config.layers] == [16, None, 16]


def test_the_long_rope_of_phi_moe_has_a_factor_of_its_own():
    rope = model_config(GoldenCase("phimoe_longrope_short").config).layers[0].mixer.rope
    assert rope is not None
    assert isinstance(rope.scaling, LongropeScaling)
    radians, factor = frequencies(rope, 64)
    assert factor == 1.1
    long_radians, long_factor = frequencies(rope, 65)
    assert long_factor == 1.25
    short, long = (rope.scaling.short_factor, rope.scaling.long_factor)
    assert (radians * short).tolist() == pytest.approx((long_radians * long).tolist())


def test_layers_that_predict_further_tokens_are_passed_over():
    case = GoldenCase("glm4_moe")
    source = DictSource(case.config, {**case.shapes, "model.layers.46.eh_proj.weight": (48, 96)})
    assert load_model(source, mesh=make_mesh()).num_params > 0


def test_numbers_that_correct_the_choice_stay_in_float32():
    model = load_model(GoldenCase("glm4_moe").source, mesh=make_mesh(), dtype="bfloat16")
    mlp = model.params["layers"][1]["mlp"]
    assert mlp["correction"].dtype == jnp.float32
    assert mlp["experts"]["up"]["kernel"].dtype == jnp.bfloat16


def test_the_router_of_ernie_is_in_float32_whatever_the_dtype():
    case = GoldenCase("ernie4_5_moe")
    model = load_model(case.source, mesh=make_mesh(), dtype="bfloat16")
    mlp = model.params["layers"][1]["mlp"]
    stored_ED = case.source.read("model.layers.1.mlp.gate.weight")
    np.testing.assert_array_equal(mlp["router"]["kernel"], stored_ED.T)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(mlp["experts"])} == {"bfloat16"}


def test_a_router_in_float32_tells_what_bfloat16_holds_as_the_same():
    router = RouterSpec(num_experts=2, top_k=1, float32=True)
    spec = MoeSpec(router=router, expert=MlpSpec(width=8))
    graph, _ = nnx.split(Moe(spec, 8, jnp.dtype("bfloat16"), rngs=None))
    kernels = np.random.default_rng(0).normal(size=(3, 2, 8, 8))

    @jax.jit
    def output(columns):
        named = zip(("gate", "up", "down"), jnp.asarray(kernels, jnp.bfloat16), strict=True)
        params = {
            "experts": {name: {"kernel": kernel} for name, kernel in named},
            "router": {"kernel": jnp.broadcast_to(columns, (8, 2))},
        }
        x_TD, is_live_T = jnp.ones((1, 8), jnp.bfloat16), jnp.ones(1, bool)
        return nnx.merge(graph, params)(x_TD, is_live_T, make_mesh())

    columns = np.asarray([[[2, 1]], [[1, 2]], [[1, 1 + 2**-12]]], np.float32)
    first, second, near = map(output, columns)
    assert (first != second).any()
    np.testing.assert_array_equal(near, second)


def test_experts_in_float16_are_a_clear_no():
    config = model_config(GoldenCase("mixtral").config)
    with pytest.raises(Unsupported, match="float16: experts are multiplied in bfloat16 or float32"):
        blank_model(config, mesh=make_mesh(), dtype="float16")


def test_experts_are_whole_on_every_device_and_split_along_their_width(four_devices):
    config = model_config(GoldenCase("glm4_moe").config)
    model = blank_model(config, mesh=make_mesh({"model": 4}))
    experts = model.params["layers"][1]["mlp"]["experts"]
    for part, shape in {"gate": (8, 48, 6), "up": (8, 48, 6), "down": (8, 6, 48)}.items():
        kernel = experts[part]["kernel"]
        assert kernel.sharding.shard_shape(kernel.shape) == shape


def test_a_width_that_the_mesh_cannot_divide_is_refused_by_its_name(four_devices):
    config = model_config({**GoldenCase("mixtral").config, "intermediate_size": 81})
    with pytest.raises(ConfigError, match=r"layers\.0\.mlp\.experts\.down\.kernel: .*81"):
        blank_model(config, mesh=make_mesh({"model": 2}))


def test_experts_stay_as_they_are_where_other_kernels_are_joined_and_blocked():
    config = model_config(GoldenCase("glm4_moe").config)
    model = blank_model(config, mesh=make_mesh(), dtype="bfloat16")
    mlp = for_decoding(model, 1).params["layers"][1]["mlp"]
    assert isinstance(mlp["shared"]["gate"]["kernel"], JoinedKernel)
    for part in ("gate", "up", "down"):
        assert isinstance(mlp["experts"][part]["kernel"], jax.ShapeDtypeStruct)


def test_random_experts_keep_the_variance_of_their_input():
    kernels_EDF = fan_in_of_each(jax.random.key(0), (4, 256, 96), jnp.dtype("float32"))
    for kernel_DF in kernels_EDF:
        assert 0.9 < 256 * float(kernel_DF.var()) < 1.1
