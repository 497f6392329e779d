"""Rotary positions as Hugging Face configs state them, in the old style and the new.

Old: ``rope_theta``, ``partial_rotary_factor`` and, where scaled, ``rope_scaling`` with
``rope_type`` or ``type``. New, since transformers 5: all of it in ``rope_parameters``. What an
object leaves out is taken from the top level.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from jaxinfer.config import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongropeScaling,
    ProportionalScaling,
    RopeScaling,
    RopeSpec,
    YarnScaling,
)
from jaxinfer.errors import ConfigError
from jaxinfer.models.hf_config import MAX_LEN, HfConfig
from jaxinfer.models.hf_specs import max_len

_ORIGINAL_LEN = "original_max_position_embeddings"


def rope(
    fields: HfConfig,
    head_dim: int,
    *,
    theta: float = 10000.0,
    rotary_share: float = 1.0,
    interleaved: bool = False,
    unstated: Mapping[str, Any] | None = None,
) -> RopeSpec:
    """The one rope of all layers; ``theta`` and ``rotary_share`` are the family's defaults.

    ``interleaved`` is what the family's code does: no config says it. ``unstated``: see
    ``rope_object``.
    """
    theta = rope_base(fields, "rope_theta", theta)
    share = turning_share(fields, "partial_rotary_factor", rotary_share)
    parameters = rope_object(fields, unstated)
    spec = rope_of(parameters, fields, head_dim, theta=theta, rotary_share=share)
    return replace(spec, interleaved=interleaved)


def ropes_by_layer_type(
    fields: HfConfig, head_dim: int, *, theta: float, sliding_theta: float | None = None
) -> tuple[RopeSpec, RopeSpec]:
    """The ropes of full and of sliding layers, of which the old style scales only the full ones.

    ``sliding_theta`` None: that of the full layers.
    """
    theta = rope_base(fields, "rope_theta", theta)
    sliding_theta = rope_base(fields, "rope_local_base_freq", sliding_theta or theta)
    parameters = rope_object(fields)
    full, sliding = parameters, None
    if parameters is not None and fields.get("rope_parameters"):
        full, sliding = parameters.inner("full_attention"), parameters.inner("sliding_attention")
        parameters.refuse_unread()
    return (
        rope_of(full, fields, head_dim, theta=theta),
        rope_of(sliding, fields, head_dim, theta=sliding_theta),
    )


def rope_object(fields: HfConfig, unstated: Mapping[str, Any] | None = None) -> HfConfig | None:
    """``rope_scaling`` or ``rope_parameters``, whichever there is.

    ``unstated``: what the family means by the latter where there is none of the two.
    """
    old, new = fields.inner("rope_scaling"), fields.inner("rope_parameters")
    if old is not None and new is not None:
        raise ConfigError("rope_scaling and rope_parameters are both given: keep one of them")
    if old is None and unstated is not None and not fields.states("rope_parameters"):
        return HfConfig(unstated, "rope_parameters.")
    return new if old is None else old


def rope_of(
    parameters: HfConfig | None,
    fields: HfConfig,
    head_dim: int,
    *,
    theta: float,
    rotary_share: float = 1.0,
) -> RopeSpec:
    """The rope that one object of parameters describes; ``fields`` is the config it belongs to."""
    scaling, share_stated_in = None, fields
    if parameters is not None:
        theta = rope_base(parameters, "rope_theta", theta)
        if parameters.states("partial_rotary_factor"):
            share_stated_in = parameters
        rotary_share = turning_share(parameters, "partial_rotary_factor", rotary_share)
        kind = "type" if parameters.get("rope_type") is None else "rope_type"
        scaling = parameters.choice(kind, _SCALINGS, "default")(parameters, fields)
        parameters.refuse_unread(ignored={"type", "finetuned"})
        if isinstance(scaling, ProportionalScaling):
            rotary_share = 1.0  # of which only some turn
    if rotary_share == 1.0 and head_dim % 2:
        raise fields.error("head_dim", head_dim, "even, for its numbers turn in pairs")
    rotary_dim = int(head_dim * rotary_share)
    if rotary_dim < 2 or rotary_dim % 2:
        allowed = f"a share of the {head_dim} numbers of a head that is even, and not {rotary_dim}"
        raise share_stated_in.error("partial_rotary_factor", rotary_share, allowed)
    if parameters is not None:
        _check_scaling(parameters, scaling, rotary_dim)
    return RopeSpec(theta=theta, rotary_dim=rotary_dim, scaling=scaling)


def rope_base(fields: HfConfig, name: str, default: float) -> float:
    """The base of a rope's frequencies, in this field."""
    theta = fields.number(name, default)
    if theta <= 1:
        raise fields.error(name, theta, "above 1")
    return theta


def turning_share(fields: HfConfig, name: str, default: float) -> float:
    """How much of a head turns, in this field."""
    share = fields.number(name, default)
    if not 0 < share <= 1:
        raise fields.error(name, share, "above 0, and at most 1")
    return share


def _check_scaling(parameters: HfConfig, scaling: RopeScaling | None, rotary_dim: int) -> None:
    """Refuses what does not fit the numbers of a head that turn."""
    if isinstance(scaling, DynamicScaling) and rotary_dim <= 2:
        allowed = f"another one where only {rotary_dim} numbers of a head turn"
        raise parameters.error("rope_type", "dynamic", allowed)
    if isinstance(scaling, LongropeScaling):
        for name in ("short_factor", "long_factor"):
            factors = getattr(scaling, name)
            if len(factors) != rotary_dim // 2:
                allowed = f"a list of {rotary_dim // 2} numbers, one a frequency"
                raise parameters.error(name, factors, allowed)


def _original_len(parameters: HfConfig, fields: HfConfig) -> int:
    """Beside the object (Phi 3), in it, or the length the model has now."""
    beside = fields.get(_ORIGINAL_LEN)
    holder = parameters if beside is None else fields
    parameters.get(_ORIGINAL_LEN)
    length = holder.size(_ORIGINAL_LEN, max_len(fields), most=MAX_LEN)
    if length == 1:
        raise holder.error(_ORIGINAL_LEN, length, "above 1")
    return length


def _linear(parameters: HfConfig, fields: HfConfig) -> LinearScaling:
    return LinearScaling(factor=parameters.positive("factor"))


def _dynamic(parameters: HfConfig, fields: HfConfig) -> DynamicScaling:
    # Grows from the length in the config: an original length in the object would change nothing.
    parameters.get(_ORIGINAL_LEN)
    return DynamicScaling(factor=parameters.positive("factor"), original_len=max_len(fields))


def _llama3(parameters: HfConfig, fields: HfConfig) -> Llama3Scaling:
    return Llama3Scaling(
        factor=parameters.positive("factor"),
        low_freq_factor=parameters.positive("low_freq_factor"),
        high_freq_factor=parameters.positive("high_freq_factor"),
        original_len=_original_len(parameters, fields),
    )


def _yarn(parameters: HfConfig, fields: HfConfig) -> YarnScaling:
    original_len = _original_len(parameters, fields)
    return YarnScaling(
        factor=parameters.positive("factor", max_len(fields) / original_len),
        original_len=original_len,
        beta_fast=parameters.positive("beta_fast", 32.0),
        beta_slow=parameters.positive("beta_slow", 1.0),
        attention_factor=parameters.optional_positive("attention_factor"),
        mscale=parameters.optional_number("mscale"),
        mscale_all_dim=parameters.optional_number("mscale_all_dim"),
        truncate=parameters.flag("truncate", True),
    )


def _longrope(parameters: HfConfig, fields: HfConfig) -> LongropeScaling:
    original_len = _original_len(parameters, fields)
    either, short = map(parameters.optional_positive, ("attention_factor", "short_mscale"))
    short_factor, long_factor = map(parameters.numbers, ("short_factor", "long_factor"))
    if len(short_factor) != len(long_factor):
        allowed = f"a list of {len(short_factor)} numbers, as short_factor"
        raise parameters.error("long_factor", long_factor, allowed)
    return LongropeScaling(
        short_factor=short_factor,
        long_factor=long_factor,
        original_len=original_len,
        factor=parameters.positive("factor", max_len(fields) / original_len),
        attention_factor=either if short is None else short,
        long_attention_factor=parameters.optional_positive("long_mscale"),
    )


def _proportional(parameters: HfConfig, fields: HfConfig) -> ProportionalScaling:
    return ProportionalScaling(
        share=parameters.number("partial_rotary_factor", 1.0),
        factor=parameters.positive("factor", 1.0),
    )


def _none(parameters: HfConfig, fields: HfConfig) -> None:
    return None


_SCALINGS: Mapping[str, Callable[[HfConfig, HfConfig], RopeScaling | None]] = {
    "default": _none,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "proportional": _proportional,
    "su": _longrope,  # what the first Phi 3 called it
}
