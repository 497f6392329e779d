"""Hunyuan dense (0.5B to 7B): q and k are normed after rope, and an ``alpha`` raises its base."""

from collections.abc import Iterator

from jaxinfer.config import ModelConfig, RopeSpec
from jaxinfer.models.hf_config import HfConfig
from jaxinfer.models.hf_rope import rope, rope_object
from jaxinfer.models.hf_specs import attention, head_dim, rms_norm
from jaxinfer.models.llama import (
    IGNORED_TENSORS,
    LAYER,
    gated_mlp,
    mlp_weights,
    outer_weights,
    pre_norm_decoder,
    projection_weights,
    qk_norm_weights,
)
from jaxinfer.models.weights import Family, WeightRule, norm

#: What the authors' own configs say of things that transformers takes for granted.
_AS_ALWAYS = {
    "add_classification_head": False,
    "mlp_bias": False,
    "norm_type": "rms",
    "num_experts": 1,
    "position_embedding_xdrope": False,
    "use_cla": False,
    "use_qk_norm": True,
}
#: They stand beside ``alpha`` and mean nothing there: most are YaRN's.
_BESIDE_ALPHA = {"type", "factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"}
_OTHER_FIELDS = """
    cla_share_factor class_num dense_list enable_lm_head_fp32 eod_token_id im_end_id im_newline_id
    im_start_id mask_init_id org_vocab_size pad_id pool_type text_end_id text_start_id
"""


def _read(fields: HfConfig) -> ModelConfig:
    for name, value in _AS_ALWAYS.items():
        fields.only(name, value)
    dim, norms = head_dim(fields), rms_norm(fields, eps=1e-5)
    bias = fields.flag("attention_bias", False)
    fields.only("attention_head_dim", dim)
    mixer = attention(
        fields,
        dim,
        rope=_rope(fields, dim),
        qk_norm=norms,
        qk_norm_after_rope=True,
        qkv_bias=bias,
        out_bias=bias,
    )
    return pre_norm_decoder(fields, mixer, gated_mlp(fields), norms)


def _rope(fields: HfConfig, dim: int) -> RopeSpec:
    """The rope; "dynamic" with an ``alpha`` does not depend on the length."""
    scaling = rope_object(fields)
    if scaling is None or scaling.get("alpha") is None:
        return rope(fields, dim)
    kind = "type" if scaling.get("rope_type") is None else "rope_type"
    scaling.choice(kind, {"dynamic": None})
    theta = scaling.positive("rope_theta", fields.positive("rope_theta", 10000.0))
    if dim <= 2:
        raise fields.error("head_dim", dim, "above 2 beside an alpha")
    alpha = scaling.positive("alpha")
    if alpha < 1:
        raise scaling.error("alpha", alpha, "1 or more")
    scaling.refuse_unread(_BESIDE_ALPHA)
    return RopeSpec(theta=theta * alpha ** (dim / (dim - 2)), rotary_dim=dim)


def _weights(config: ModelConfig) -> Iterator[WeightRule]:
    layer = config.layers[0]
    yield from outer_weights(config)
    yield from norm("layers.{i}.mixer_norm", LAYER + "input_layernorm", layer.pre_norm)
    yield from projection_weights(config)
    yield from qk_norm_weights(config, "query_layernorm", "key_layernorm")
    yield from norm("layers.{i}.mlp_norm", LAYER + "post_attention_layernorm", layer.pre_norm)
    yield from mlp_weights(config)


HUNYUAN = Family(
    name="hunyuan",
    model_types=("hunyuan_v1_dense",),
    read=_read,
    weights=_weights,
    ignored_fields=frozenset(_OTHER_FIELDS.split()),
    ignored_tensors=IGNORED_TENSORS,
)
