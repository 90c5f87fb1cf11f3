"""Modules that models are made of."""

from torch.nn import LayerNorm

__all__ = ["LayerNorm"]
