"""Sizing: what memory a model's weights take on which devices, before anything is loaded.

``drawing`` makes a blueprint of a model from its configuration, ``sharing`` tells which part of it each device holds,
``choices`` compares that with the devices' memory, and ``showing`` prints it.
"""
