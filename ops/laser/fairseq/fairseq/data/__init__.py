"""Data: the dictionary."""
