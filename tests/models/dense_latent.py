"""What a ``LatentSpec`` means: keys and values of every head made of the latents, in float64."""

from collections.abc import Callable

import numpy as np

from jaxinfer.config import LatentSpec


def latent_attention(
    spec: LatentSpec,
    x_TD: np.ndarray,
    linear: Callable[[str, np.ndarray, bool], np.ndarray],
    norm: Callable[[str, np.ndarray], np.ndarray],
    rotate: Callable[[np.ndarray], np.ndarray],
    kernel: Callable[[str], np.ndarray],
) -> np.ndarray:
    """``[T, D]``; ``linear(name, x, has_bias)``, ``norm(name, x)``, ``rotate(x_TNr)`` and
    ``kernel(name)`` know the parameters."""
    num_tokens = len(x_TD)
    if spec.q_rank is None:
        q_TX = linear("q", x_TD, False)
    else:
        q_TX = linear("q_up", norm("q_norm", linear("q_down", x_TD, spec.down_bias)), False)
    q_TNH = q_TX.reshape(num_tokens, spec.num_heads, spec.nope_dim + spec.rope_dim)
    latent_TR, k_Tr = np.split(linear("kv_down", x_TD, spec.down_bias), [spec.kv_rank], axis=-1)
    latent_TR = norm("kv_norm", latent_TR)
    q_rope_TNr, k_rope_Tr = rotate(q_TNH[..., spec.nope_dim :]), rotate(k_Tr[:, None])[:, 0]
    k_TNh = np.einsum("TR,NhR->TNh", latent_TR, kernel("k_up"))
    v_TNv = np.einsum("TR,NRv->TNv", latent_TR, kernel("v_up"))
    logits_NTU = np.einsum("TNh,UNh->NTU", q_TNH[..., : spec.nope_dim], k_TNh)
    logits_NTU += np.einsum("TNr,Ur->NTU", q_rope_TNr, k_rope_Tr)
    sees_TU = np.tri(num_tokens, dtype=bool)
    logits_NTU = np.where(sees_TU, logits_NTU * spec.softmax_scale, -np.inf)
    weights_NTU = np.exp(logits_NTU - logits_NTU.max(axis=-1, keepdims=True))
    weights_NTU /= weights_NTU.sum(axis=-1, keepdims=True)
    out_TNv = np.einsum("NTU,UNv->TNv", weights_NTU, v_TNv)
    return linear("o", out_TNv.reshape(num_tokens, -1), spec.out_bias)
