"""What a layer computes of each token alone: an MLP, or a mixture of them."""

from dataclasses import dataclass
from typing import Literal, get_args

from jaxinfer.config.checks import positive, require
from jaxinfer.config.norm import NormSpec

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"]
RouterScores = Literal["softmax", "sigmoid", "sparsemixer"]
GroupScore = Literal["max", "top2"]


@dataclass(frozen=True, kw_only=True)
class MlpSpec:
    """``down(act(gate(x)) * up(x))`` when gated (SwiGLU, GeGLU; arXiv 2002.05202), else
    ``down(act(up(x)))``.

    The clamped SwiGLU of gpt-oss (arXiv 2508.10925) is the gated kind with more to it: ``limit``
    clamps gate from above and up from both sides, ``swish_beta`` makes the activation
    ``x * sigmoid(beta * x)``, and ``up_offset`` is added to up.

    ``sparsity``: the share of the gate's numbers that are cut off before the activation, taken as
    if they were normal: each loses ``mean + std * z`` of its token, and is 0 if negative then
    (Spark Transformer, arXiv 2506.06644).
    """

    width: int
    activation: Activation = "silu"
    gated: bool = True
    bias: bool = False
    limit: float | None = None
    swish_beta: float = 1.0
    up_offset: float = 0.0
    sparsity: float = 0.0

    def __post_init__(self) -> None:
        positive(self, "width")
        require(0 <= self.sparsity < 1, "sparsity", self.sparsity, "0 or more, and below 1")
        require(self.gated or not self.sparsity, "sparsity", self.sparsity, "0 without a gate")
        known = get_args(Activation)
        require(
            self.activation in known, "activation", self.activation, "one of " + ", ".join(known)
        )
        positive(self, "swish_beta")
        if self.limit is not None:
            positive(self, "limit")
        is_silu = self.activation == "silu" or self.swish_beta == 1.0
        require(is_silu, "swish_beta", self.swish_beta, "1.0 but for 'silu'")
        is_plain = self.limit is None and self.up_offset == 0.0
        require(self.gated or is_plain, "limit and up_offset", True, "used in gated MLPs only")


@dataclass(frozen=True, kw_only=True)
class RouterSpec:
    """Which ``top_k`` of ``num_experts`` experts a token goes to, and how much each of them counts.

    ``scores`` of the router's logits: ``"softmax"`` over all experts (Mixtral, arXiv 2401.04088),
    ``"sigmoid"`` of each (DeepSeek-V3, arXiv 2412.19437), or ``"sparsemixer"`` (GRIN, arXiv
    2409.12136: one expert after the other, each weighed by a softmax over those that come near it,
    as far as ``jitter`` says).

    The experts with the highest scores are chosen, and weigh what they score. ``renormalize``: the
    weights of the chosen ones are divided by their sum; after a softmax this is the same as a
    softmax over the chosen logits alone. ``scale`` multiplies the weights. ``correction``: a
    learned number for each expert is added to its score where experts are chosen, not where they
    are weighed. ``bias``: another one, added to the logits themselves (gpt-oss). ``logit_scale``
    multiplies the logits, ``expert_scale`` the weights, by a learned number for each expert.
    ``float32``: the router's matrix is kept and multiplied so, whatever the model's dtype (Ernie
    4.5); without it the product of what the dtype holds is still summed up in float32.

    Experts lie in ``num_groups`` groups of equal size, of which only the best ``top_groups`` are
    chosen from (DeepSeek-V2, arXiv 2405.04434). A group is as good as its best expert (``"max"``)
    or as its best two together (``"top2"``).
    """

    num_experts: int
    top_k: int
    scores: RouterScores = "softmax"
    renormalize: bool = True
    scale: float = 1.0
    correction: bool = False
    bias: bool = False
    expert_scale: bool = False
    float32: bool = False
    logit_scale: float = 1.0
    num_groups: int = 1
    top_groups: int = 1
    group_score: GroupScore = "max"
    jitter: float = 0.0

    def __post_init__(self) -> None:
        positive(self, "num_experts", "top_k", "scale", "num_groups", "top_groups")
        positive(self, "logit_scale")
        for field, kinds in (("scores", RouterScores), ("group_score", GroupScore)):
            value, known = getattr(self, field), get_args(kinds)
            require(value in known, f"router {field}", value, "one of " + ", ".join(known))
        experts, groups = self.num_experts, self.num_groups
        require(self.top_k <= experts, "top_k", self.top_k, f"at most num_experts = {experts}")
        require(
            experts % groups == 0, "num_groups", groups, f"a divisor of num_experts = {experts}"
        )
        fits = self.top_groups <= groups
        require(fits, "top_groups", self.top_groups, f"at most num_groups = {groups}")
        in_groups = self.top_groups * experts // groups
        allowed = f"at most {in_groups}, the experts of top_groups = {self.top_groups} groups"
        require(self.top_k <= in_groups, "top_k", self.top_k, allowed)
        if groups > 1 and self.group_score == "top2":
            allowed = "a number that leaves each group two experts"
            require(experts >= 2 * groups, "num_groups", groups, allowed)
        require(self.jitter >= 0, "jitter", self.jitter, "0 or more")
        if self.scores == "sparsemixer":
            require(self.top_k <= 2, "top_k of 'sparsemixer'", self.top_k, "1 or 2")
            plain = not (self.renormalize or self.correction or self.expert_scale or groups > 1)
            allowed = "used without renormalize, correction, expert_scale and groups"
            require(plain, "router scores", self.scores, allowed)


@dataclass(frozen=True, kw_only=True)
class MoeSpec:
    """A mixture of experts (arXiv 1701.06538) that drops no token: ``num_experts`` MLPs.

    The result is the weighted sum of the experts that the router chose, plus ``shared``, an MLP for
    all tokens. ``shared_gate``: the latter times the sigmoid of one more number from the input.
    ``weigh_input``: the router's weight multiplies what an expert reads, and the experts' results
    are added up as they are (Llama 4).

    ``part_norm``: router, experts and shared MLP read what the block would norm for all of them,
    each through a norm of its own; experts and shared MLP are normed once more before they are
    added (Gemma 4).
    """

    router: RouterSpec
    expert: MlpSpec
    shared: MlpSpec | None = None
    shared_gate: bool = False
    weigh_input: bool = False
    part_norm: NormSpec | None = None

    def __post_init__(self) -> None:
        has_what_it_gates = self.shared is not None or not self.shared_gate
        require(has_what_it_gates, "shared_gate", True, "used with a shared expert only")
        dense = not self.expert.sparsity
        require(dense, "sparsity of an expert", self.expert.sparsity, "0")
