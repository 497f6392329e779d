"""What a prefill must at least compute, by the model's figures alone."""

from jaxinfer.config import AttentionSpec, ModelConfig
from jaxinfer.config.model import MixerSpec


def prefill_flops(
    config: ModelConfig, num_active_params: int, *, batch_size: int, input_len: int
) -> int:
    """Floating point operations for ``batch_size`` prompts of ``input_len`` tokens each.

    Two for each parameter that a token is multiplied by, the head for each prompt's last token
    alone; and attention's two products over the positions that are seen. Norms, activations and the
    like are not counted, as in the model FLOPs of PaLM (arXiv 2204.02311, appendix B).

    Args:
        num_active_params: see ``Model.num_active_params``.
    """
    head = config.vocab_size * config.width
    dense = num_active_params - head
    if not config.tied_head:
        dense -= head  # the embedding, of which rows are read
    if config.layer_input is not None:
        dense -= config.layer_input.vocab_size * config.layer_input.width * len(config.layers)
    products = 2 * batch_size * (input_len * dense + head)
    attention = sum(_attention_flops(layer.mixer, input_len) for layer in config.layers)
    return products + batch_size * attention


def _attention_flops(mixer: MixerSpec, length: int) -> int:
    """Of one prompt in one layer."""
    if isinstance(mixer, AttentionSpec):
        sizes = 2 * mixer.head_dim
    else:
        sizes = mixer.query_dim + mixer.value_dim
    return 2 * mixer.num_heads * sizes * _seen(mixer, length)


def _seen(mixer: MixerSpec, length: int) -> int:
    """Positions that the tokens of a prompt see, together."""
    reach = min(mixer.reach or length, length)
    first = reach * (reach + 1) // 2
    if mixer.window is not None or mixer.reach is None:
        return first + (length - reach) * reach
    chunks, rest = divmod(length, reach)
    return chunks * first + rest * (rest + 1) // 2
