"""Refusing a checkpoint that is another model's.

Where a checkpoint names its tensors otherwise than the model does, as that of a whole translation model does for its
encoder, transformers starts from random weights and only warns: every slot would give other vectors, and none of them
would mean anything.
"""

from __future__ import annotations

from typing import Any

from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Transformer

from tasks import weights
from tasks.errors import ModelNotFound
from tasks.messages import ModelSpec


def check_weights(spec: ModelSpec, model: BaseModel) -> None:
    """Find out whether a transformer's weights came from its checkpoint. Some may be missing, as an unused pooler's.

    transformers marks what it read. That is no promise, so a model without a mark is read once more, and its own list
    of what is missing decides.

    Raises:
        ModelNotFound: more than half of them are missing.
    """
    first: Any = model[0]
    if not isinstance(first, Transformer):
        return
    transformer = first.model
    if any(getattr(parameter, "_is_hf_initialized", False) for parameter in transformer.parameters()):
        return
    try:
        _, found = type(transformer).from_pretrained(
            weights.locate(spec), revision=spec.revision, config=transformer.config, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError):  # it lies elsewhere in the folder, or is read in another way
        return
    missing, n_all = sorted(found["missing_keys"]), len(transformer.state_dict())
    if 2 * len(missing) > n_all:
        raise ModelNotFound(
            f"--model {spec}: its files hold another model than the {type(transformer).__name__} that would be run; "
            f"{len(missing)} of {n_all} weights are missing, such as {missing[0]}. Name a checkpoint of that model "
            "alone.",
            model=str(spec),
        )
