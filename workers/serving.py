"""What a node serves: its model and its broker, by its settings."""

from __future__ import annotations

from tasks.broker import DEFAULT_BROKER_URL
from tasks.errors import UsageError
from tasks.messages import ModelSpec
from tasks.settings import Settings


def model_spec(settings: Settings) -> ModelSpec:
    """Return the model of this node.

    Raises:
        UsageError: none is set.
    """
    if settings.model is None:
        raise UsageError("This node has no model: use `penstock worker --model MODEL` or set PENSTOCK_MODEL.")
    return ModelSpec.parse(settings.model, settings.operation)


def queue(settings: Settings) -> str:
    """Return the queue of this node."""
    return model_spec(settings).queue(settings.operation)


def broker_url(settings: Settings) -> str:
    """Return the broker of this node."""
    return settings.broker_url or DEFAULT_BROKER_URL
