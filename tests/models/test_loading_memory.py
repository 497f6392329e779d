"""Loading streams: the host never holds more than the parameters and what is on its way to them."""

import tracemalloc

import numpy as np

from jaxinfer.checkpoint.source import Index
from jaxinfer.models.loading import load_model
from sharding import make_mesh
from tests.models.dict_source import DictSource

WIDTH, INNER, LAYERS, VOCAB = 256, 1024, 8, 2048
CONFIG = {
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
OF_A_LAYER = {
    "input_layernorm": (WIDTH,),
    "post_attention_layernorm": (WIDTH,),
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (WIDTH, WIDTH),
    "self_attn.v_proj": (WIDTH, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (INNER, WIDTH),
    "mlp.up_proj": (INNER, WIDTH),
    "mlp.down_proj": (WIDTH, INNER),
}


class OnesSource(DictSource):
    """Tensors that cost nothing to make beside themselves."""

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """See `Source.read`."""
        shape = self.tensors[name].shape
        return np.ones(shape if index is None else np.empty(shape, np.bool_)[index].shape, "f4")


EXPERTS = 16
MIXTURE = {
    **CONFIG,
    "model_type": "mixtral",
    "intermediate_size": INNER // 4,
    "num_hidden_layers": 4,
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": 2,
}


def test_loading_experts_holds_the_parameters_and_one_tensor() -> None:
    inner, expert = INNER // 4, "block_sparse_moe.experts.{e}."
    of_a_layer = {name: shape for name, shape in OF_A_LAYER.items() if "mlp" not in name}
    of_a_layer["block_sparse_moe.gate"] = (EXPERTS, WIDTH)
    for part, shape in {"w1": (inner, WIDTH), "w3": (inner, WIDTH), "w2": (WIDTH, inner)}.items():
        of_a_layer |= {expert.format(e=e) + part: shape for e in range(EXPERTS)}
    # A parameter, in the model's dtype already, is all that is put together before it is placed.
    assert_peak(MIXTURE, of_a_layer, beside=2 * EXPERTS * inner * WIDTH)


def test_loading_holds_the_parameters_and_one_tensor() -> None:
    # A tensor as it is stored, and once more turned and rounded to the model's dtype.
    assert_peak(CONFIG, OF_A_LAYER, beside=0)


def assert_peak(config: dict, of_a_layer: dict[str, tuple[int, ...]], beside: int) -> None:
    """The weights, the largest tensor twice, and ``beside`` bytes are all that loading holds."""
    shapes = {
        "model.embed_tokens.weight": (VOCAB, WIDTH),
        "model.norm.weight": (WIDTH,),
        **{
            f"model.layers.{layer}.{name}.weight": shape
            for layer in range(config["num_hidden_layers"])
            for name, shape in of_a_layer.items()
        },
    }
    source = OnesSource(config, shapes)
    stored = [4 * int(np.prod(shape)) for shape in shapes.values()]
    load_model(source, mesh=make_mesh())  # what is imported and traced is not weights
    tracemalloc.start()
    try:
        model = load_model(source, mesh=make_mesh())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    most = model.weight_bytes + 2 * max(stored) + beside
    assert most < sum(stored)
    assert peak < most
