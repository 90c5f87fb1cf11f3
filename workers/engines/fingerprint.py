"""The fingerprint of a loaded model."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from sentence_transformers import SentenceTransformer


def fingerprint_of(model: SentenceTransformer) -> str:
    """Hash what the vectors depend on: a second for each GB of weights.

    That is the modules with their settings, the token limit, every tensor, prompts, the tokenizer, and what an export
    was made for.
    """
    digest = hashlib.blake2b(digest_size=8)
    digest.update(repr([type(module).__name__ for module in model]).encode())
    digest.update(repr(model.max_seq_length).encode())
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1).contiguous().cpu()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(flat.view(torch.uint8).numpy().data)
    for module in model:
        config: dict[str, Any] = getattr(module, "get_config_dict", dict)()
        digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    digest.update(json.dumps([model.prompts, model.default_prompt_name], sort_keys=True).encode())
    tokenizer = getattr(getattr(model[0], "tokenizer", None), "backend_tokenizer", None)
    if tokenizer is not None:
        # What its last call left behind; each call sets both.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        digest.update(tokenizer.to_str().encode())
    digest.update(getattr(getattr(model[0], "model", None), "identity", "").encode())
    return digest.hexdigest()
