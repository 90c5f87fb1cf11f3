"""The fingerprint of a loaded model."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.base.model import BaseModel
from sentence_transformers.util import fullname
from tokenizers import Tokenizer

from tasks.options import Template
from workers.engines.languages import any_language
from workers.sharding.crew import crew_of
from workers.sharding.orders import TENSORS
from workers.sharding.tensors import whole_tensors

#: What a configuration says of files, libraries and devices, and not of what is computed.
_NO_CONTENT = {"_name_or_path", "transformers_version", "distributed_config"}
#: What a tokenizer does beside its backend: which tokens are put around a text, and which end of it is cut.
_TOKENIZER_FACTS = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "cls_token_id", "sep_token_id", "unk_token_id"),
    *("padding_side", "truncation_side"),
)


def fingerprint_of(model: BaseModel) -> str:
    """Hash what vectors or scores depend on: a second for each GB of weights.

    That is the modules with their settings, the token limit, every tensor, prompts, the tokenizer, what an export was
    made for, and what a cross-encoder does with its logits.
    """
    digest = hashlib.blake2b(digest_size=8)
    digest.update(repr([type(module).__name__ for module in model]).encode())
    digest.update(repr(model.max_seq_length).encode())
    _add_tensors(digest, model)
    for module in model:
        config: dict[str, Any] = getattr(module, "get_config_dict", dict)()
        digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    digest.update(json.dumps([model.prompts, model.default_prompt_name], sort_keys=True).encode())
    _add_tokenizer(digest, getattr(model[0], "tokenizer", None))
    digest.update(getattr(getattr(model[0], "model", None), "identity", "").encode())
    if isinstance(model, CrossEncoder):
        digest.update(f"{fullname(model.activation_fn)} {model.keep_in_fp32_modules}".encode())
    return digest.hexdigest()


def fingerprint_of_causal(model: Any, tokenizer: Any, template: Template | None, most: int) -> str:
    """Hash what the scores of a causal language model depend on; ``most`` are the tokens that it takes.

    The template is the worker's own: a job that names none gets its scores by it, so slots with different ones may not
    share a job.
    """
    digest = hashlib.blake2b(digest_size=8)
    name = type(model).__name__.removeprefix("FSDP")  # torch's name for a class that is parted
    digest.update(f"{name} {most}".encode())
    config = {name: value for name, value in model.config.to_diff_dict().items() if name not in _NO_CONTENT}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    _add_tensors(digest, model)
    _add_tokenizer(digest, tokenizer)
    digest.update(template.model_dump_json().encode() if template else b"")
    return digest.hexdigest()


def _add_tensors(digest: hashlib.blake2b, model: torch.nn.Module) -> None:
    if crew := crew_of(model):
        crew.tell(TENSORS)
    for name, tensor in whole_tensors(model):
        flat = tensor.detach().reshape(-1).contiguous().cpu()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(flat.view(torch.uint8).numpy().data)


def _add_tokenizer(digest: hashlib.blake2b, tokenizer: Any) -> None:
    facts: list[Any] = [getattr(tokenizer, name, None) for name in _TOKENIZER_FACTS]
    facts.append(len(tokenizer) if hasattr(tokenizer, "__len__") else 0)
    digest.update(json.dumps(facts, default=str).encode())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        # What its last call left behind; each call sets both.
        backend.no_truncation()
        backend.no_padding()
        with any_language(tokenizer):
            digest.update(backend.to_str().encode())
    elif isinstance(tokenizer, Tokenizer):  # of static embeddings; a limit in its file is no call's
        digest.update(tokenizer.to_str().encode())
    elif hasattr(tokenizer, "get_vocab"):
        digest.update(json.dumps(sorted(tokenizer.get_vocab().items(), key=str)).encode())
