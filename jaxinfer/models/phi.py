"""Phi 1, 1.5 (arXiv 2309.05463) and 2: one LayerNorm before both branches, biases everywhere."""

from collections.abc import Iterator

from jaxinfer.config import LayerSpec, MlpSpec, ModelConfig
from jaxinfer.models.hf_config import HfConfig
from jaxinfer.models.hf_rope import rope
from jaxinfer.models.hf_specs import attention, decoder, head_dim, layer_norm, num_layers
from jaxinfer.models.llama import IGNORED_TENSORS, LAYER, projection_weights, qk_norm_weights
from jaxinfer.models.weights import Family, WeightRule, embedding, linear, norm


def _read(fields: HfConfig) -> ModelConfig:
    dim, norms = head_dim(fields), layer_norm(fields, bias=True)
    mixer = attention(
        fields,
        dim,
        rope=rope(fields, dim, rotary_share=0.5),
        qk_norm=norms if fields.flag("qk_layernorm", False) else None,
        qkv_bias=True,
        out_bias=True,
    )
    mlp = MlpSpec(
        width=fields.size("intermediate_size"),
        activation=fields.activation("hidden_act"),
        gated=False,
        bias=True,
    )
    layer = LayerSpec(mixer=mixer, mlp=mlp, pre_norm=norms, parallel=True, shared_norm=True)
    layers = (layer,) * num_layers(fields)
    fields.only("tie_word_embeddings", False)
    return decoder(fields, layers=layers, final_norm=norms, head_bias=True)


def _weights(config: ModelConfig) -> Iterator[WeightRule]:
    yield embedding("embed", "model.embed_tokens")
    yield from norm("layers.{i}.mixer_norm", LAYER + "input_layernorm", config.layers[0].pre_norm)
    yield from projection_weights(config, out="dense")
    yield from qk_norm_weights(config, "q_layernorm", "k_layernorm")
    yield from linear("layers.{i}.mlp.up", LAYER + "mlp.fc1", bias=True)
    yield from linear("layers.{i}.mlp.down", LAYER + "mlp.fc2", bias=True)
    yield from norm("final_norm", "model.final_layernorm", config.final_norm)
    yield from linear("head", "lm_head", bias=True)


PHI = Family(
    name="phi",
    model_types=("phi",),
    read=_read,
    weights=_weights,
    defaults={"hidden_act": "gelu_new"},
    ignored_tensors=IGNORED_TENSORS[:1],
)
