"""Refusing a model whose vectors would not be those of its checkpoint.

Where a checkpoint lacks tensors, or names them otherwise than the model does, as that of a whole translation model does
for its encoder, transformers starts from random weights and only warns: every slot would give other vectors, and none
of them would mean anything.
"""

from __future__ import annotations

from typing import Any

from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Transformer

from tasks import weights
from tasks.errors import ModelNotFound
from tasks.messages import ModelSpec

#: What the name of a weight holds that only BERT's summary of a text has, as the vectors of tokens do not.
POOLER = "pooler"


def check_weights(spec: ModelSpec, model: BaseModel) -> None:
    """Find out whether a transformer's weights came from its checkpoint. Those of a pooler that is not used may lack.

    transformers marks what it read. That is no promise, so a model in which weights have no mark is read once more, and
    its own list of what is missing decides.

    Raises:
        ModelNotFound: some of them would be random.
    """
    first: Any = model[0]
    if not isinstance(first, Transformer):
        return
    transformer = first.model
    is_marked = {name: hasattr(tensor, "_is_hf_initialized") for name, tensor in transformer.named_parameters()}
    unmarked = _used(first, {name for name, is_read in is_marked.items() if not is_read})
    if not unmarked:
        return
    missing = _used(first, _find_missing(spec, transformer, unmarked if any(is_marked.values()) else set()))
    if missing:
        raise ModelNotFound(
            f"--model {spec}: its files lack {len(missing)} of {len(is_marked)} weights of the "
            f"{type(transformer).__name__} that would be run, such as {min(missing)}; these would be random. Name a "
            "checkpoint of that model, and of nothing around it.",
            model=str(spec),
        )


def _used(first: Any, names: set[str]) -> set[str]:
    """Return the weights that count: without a pooler's where tokens' vectors are what goes on."""
    if first.module_output_name != "token_embeddings":
        return names
    return {name for name in names if POOLER not in name}


def _find_missing(spec: ModelSpec, transformer: Any, otherwise: set[str]) -> set[str]:
    """Return the weights that transformers misses in the files.

    Args:
        spec: of the model.
        transformer: as it was loaded.
        otherwise: what to return where the files lie elsewhere in the folder, or are read in another way.
    """
    try:
        _, found = type(transformer).from_pretrained(
            weights.locate(spec), revision=spec.revision, config=transformer.config, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError):
        return otherwise
    return set(found["missing_keys"])


def check_is_encoder(spec: ModelSpec, model: BaseModel) -> None:
    """Refuse a transformer with a decoder behind its encoder: what it says of the text's tokens is of another text.

    Raises:
        ModelNotFound: it has one.
    """
    transformer: Any = getattr(model[0], "model", None)
    is_whole = getattr(getattr(transformer, "config", None), "is_encoder_decoder", False)
    if is_whole and getattr(transformer, "decoder", None) is not None:
        raise ModelNotFound(
            f"--model {spec}: {type(transformer).__name__} is an encoder with a decoder behind it, whose vectors are "
            "those of the next words to write. Name a model that is an encoder, such as a port of its encoder alone.",
            model=str(spec),
        )
