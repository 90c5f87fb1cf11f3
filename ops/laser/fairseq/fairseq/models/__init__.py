"""Models: the transformer."""
