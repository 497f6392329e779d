"""What a ``MoeSpec`` means: one token after the other, in plain numpy and float64."""

import numpy as np

from jaxinfer.config import RouterSpec


def routed(
    spec: RouterSpec, logits_E: np.ndarray, correction_E: np.ndarray | None = None
) -> dict[int, float]:
    """The experts of one token, and how much each of them counts."""
    logits_E = logits_E.astype(np.float64)
    if spec.scores == "sparsemixer":
        return _sparsemixer(spec, logits_E)
    if spec.scores == "softmax":
        powers_E = np.exp(logits_E - logits_E.max())
        score_E = powers_E / powers_E.sum()
    else:
        assert spec.scores == "sigmoid"
        score_E = 1 / (1 + np.exp(-logits_E))
    rank_E = score_E if correction_E is None else score_E + correction_E
    allowed = _experts_of_the_best_groups(spec, rank_E)
    chosen = sorted(allowed, key=lambda expert: -rank_E[expert])[: spec.top_k]
    total = sum(score_E[expert] for expert in chosen) if spec.renormalize else 1.0
    return {expert: spec.scale * score_E[expert] / total for expert in chosen}


def _experts_of_the_best_groups(spec: RouterSpec, rank_E: np.ndarray) -> list[int]:
    groups = np.split(np.arange(spec.num_experts), spec.num_groups)
    considered = 2 if spec.group_score == "top2" else 1

    def score(group: np.ndarray) -> float:
        return float(np.sort(rank_E[group])[-considered:].sum())

    best = sorted(groups, key=lambda group: -score(group))[: spec.top_groups]
    return [int(expert) for group in best for expert in group]


def _sparsemixer(spec: RouterSpec, logits_E: np.ndarray) -> dict[int, float]:
    """Algorithm of GRIN (arXiv 2409.12136), with the mask of the published code."""
    weights: dict[int, float] = {}
    left = list(range(spec.num_experts))
    for _ in range(spec.top_k):
        best = max(left, key=lambda expert: logits_E[expert])
        highest = logits_E[best]
        near = [
            expert
            for expert in left
            if (highest - logits_E[expert]) / max(abs(logits_E[expert]), highest) <= 2 * spec.jitter
        ]
        weights[best] = spec.scale / sum(np.exp(logits_E[expert] - highest) for expert in near)
        left.remove(best)
    return weights
