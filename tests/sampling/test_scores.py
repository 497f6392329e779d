"""Log-probabilities and ranks against NumPy in float64."""

import jax
import numpy as np
import pytest

from jaxinfer.sampling import score

score_rows = jax.jit(score, static_argnames="max_logprobs")


def plain_log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    largest = logits.max(-1, keepdims=True)
    return logits - largest - np.log(np.exp(logits - largest).sum(-1, keepdims=True))


@pytest.mark.parametrize("vocab", [3, 64, 1000])
@pytest.mark.parametrize("max_logprobs", [0, 1, 20])
def test_scores_are_those_of_a_sorted_log_softmax(vocab, max_logprobs):
    rng = np.random.default_rng(vocab + max_logprobs)
    logits = rng.normal(0, 6, (7, vocab)).round(1).astype(np.float32)
    targets = rng.integers(0, vocab, 7).astype(np.int32)
    scores = score_rows(logits, targets, max_logprobs=max_logprobs)

    logprobs = plain_log_softmax(logits)
    target_logits = logits[np.arange(7), targets]
    order = np.argsort(-logits, axis=-1, kind="stable")[:, :max_logprobs]
    num_top = order.shape[1]
    np.testing.assert_allclose(
        scores.logprob_R, logprobs[np.arange(7), targets], rtol=1e-5, atol=1e-5
    )
    assert np.array_equal(scores.rank_R, 1 + (logits > target_logits[:, None]).sum(-1))
    assert scores.top_ids_RA.shape == (7, max_logprobs)
    assert np.asarray(scores.top_ids_RA)[:, :num_top].tolist() == order.tolist()
    np.testing.assert_allclose(
        np.asarray(scores.top_logprobs_RA)[:, :num_top],
        np.take_along_axis(logprobs, order, -1),
        rtol=1e-5,
        atol=1e-5,
    )
    assert np.all(np.asarray(scores.top_logprobs_RA)[:, num_top:] == -np.inf)


def test_large_logits_do_not_overflow():
    logits = np.asarray([[3e38, -3e38, 0.0]], np.float32)
    scores = score_rows(logits, np.asarray([0], np.int32), max_logprobs=2)
    assert scores.logprob_R.tolist() == [0.0]
    assert scores.rank_R.tolist() == [1]
