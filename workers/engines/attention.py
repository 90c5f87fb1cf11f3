"""Attention kernels. transformers takes torch's own (SDPA) by itself; FlashAttention-2 is for whoever has installed it.

FlashAttention takes the rows of a batch one behind the other instead of padded to the longest.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers.utils.import_utils import is_flash_attn_2_available

log = logging.getLogger(__name__)

#: Modules that take rows without padding, or see vectors only.
_UNPADDED = (Pooling, Dense, Normalize)


def use_flash_attention(model: SentenceTransformer) -> None:
    """Let a model on a GPU use FlashAttention-2, and drop padding where all its modules can, if flash_attn is there.

    Not yet run on a GPU.
    """
    first: Any = model[0]
    if not isinstance(first, Transformer) or not is_flash_attn_2_available():
        return
    transformer: Any = first.model
    is_half = getattr(transformer, "dtype", None) in {torch.float16, torch.bfloat16}
    if not is_half or not getattr(transformer, "_supports_flash_attn", False):
        return
    transformer.set_attn_implementation("flash_attention_2")
    can_unpad = all(isinstance(module, _UNPADDED) for module in list(model)[1:])
    first.unpad_inputs = None if can_unpad else False  # None asks sentence-transformers to look again
    log.info("FlashAttention-2 in use", extra={"action": "load", "unpadded": is_unpadded(model)})


def is_unpadded(model: SentenceTransformer) -> bool:
    """Whether batches go to the model without padding; workers.engines.features makes them."""
    return bool(getattr(model[0], "can_flatten_inputs", False))
