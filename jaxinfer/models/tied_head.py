"""Whether the head is the embeddings: what a config says of it, and what a checkpoint shows."""

import logging
from dataclasses import replace

import numpy as np

from jaxinfer.checkpoint.source import Source
from jaxinfer.config import ModelConfig
from jaxinfer.models.registry import family_for, model_config
from jaxinfer.models.weights import stored_names

#: Bytes of each of the two tensors that are compared at once.
_CHUNK_BYTES = 16 << 20
_log = logging.getLogger(__name__)


def checkpoint_config(source: Source) -> ModelConfig:
    """The decoder of a checkpoint: that of its ``config.json``, its head tied only if it is.

    Where a config says that the head is tied and the files hold a head that differs from the
    embeddings, there are two matrices, as transformers has it. A head of the same numbers is a
    copy. Both are read in parts, as far as they agree.

    Raises:
        ConfigError, Unsupported: as ``model_config``.
    """
    config = model_config(source.config)
    if not config.tied_head:
        return config
    family = family_for(source.config)
    stored = stored_names(family, source.tensors)
    embedding, head = (stored.get(name) for name in family.outer_names(config))
    if embedding is None or head is None or _are_equal(source, embedding, head):
        return config
    _log.warning(
        "%s: tie_word_embeddings is true, and yet %s differs from %s: both are used; false in "
        "config.json says so, and a file without the former ties them",
        source.path,
        head,
        embedding,
    )
    return replace(config, tied_head=False)


def _are_equal(source: Source, one: str, other: str) -> bool:
    """Whether two tensors hold the same numbers, in whatever dtypes."""
    shape = source.tensors[one].shape
    if shape != source.tensors[other].shape or len(shape) != 2:
        return False
    num_rows, width = shape
    step = max(1, _CHUNK_BYTES // max(1, 4 * width))
    for start in range(0, num_rows, step):
        part = (slice(start, start + step),)
        of_one, of_other = (source.read(name, part).astype(np.float32) for name in (one, other))
        if not np.array_equal(of_one, of_other):
            return False
    return True
