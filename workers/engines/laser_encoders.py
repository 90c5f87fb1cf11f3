"""LASER by its official package, laser_encoders, in penstock's batches.

The package tokenises and computes; by itself it would take one sentence at a time. It is not among penstock's extras,
as it asks for a fairseq that cannot be installed: ``make laser`` installs it beside a stand-in (ops/laser).
"""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tasks.errors import UsageError
from tasks.options import EncodeOptions
from tasks.settings import Settings
from workers.engines.batched import Loaded
from workers.engines.blocks import NO_LIMIT, Prepared
from workers.engines.laser import text_steps
from workers.engines.laser.checkpoints import files_of
from workers.engines.laser.encoder import LaserEncoder
from workers.engines.laser.loading import fingerprint, precision_of
from workers.engines.laser.reading import reading


class OfficialLaserEncoder(LaserEncoder):
    """LASER2 or one LASER3 student, loaded and run by the official package. Not yet run on a GPU.

    Arguments and errors are those of ``LaserEncoder``; a ``UsageError`` also says that the package is not there.
    """

    def _open(self, folder: Path, device: str, settings: Settings) -> Loaded:
        package = _import_package()
        precision = _precision_of(device, settings)
        files = files_of(self._checkpoint, folder)
        with reading(folder / files.pieces):
            self._tokenizer = package.LaserTokenizer(spm_model=folder / files.pieces)
        # What the package reads the weights with takes nothing but numbers, words and, of a student, its settings.
        with reading(folder / files.weights), torch.serialization.safe_globals([Namespace]):
            self._encoder = package.SentenceEncoder(
                str(folder / files.weights),
                max_tokens=NO_LIMIT,  # what it is given is one batch
                spm_vocab=str(folder / files.vocabulary) if files.vocabulary else None,
                cpu=device == "cpu",
                fp16=precision == "fp16",
            )
        self._n_special = 1 + self._encoder.prepend_bos
        facts = f"laser_encoders {version('laser_encoders')} {text_steps.FACTS} {precision}"
        return Loaded(
            model=self._encoder.encoder,
            weights=fingerprint([folder / name for name in files.names], facts),
            most=NO_LIMIT,
            pads=True,
            can_pad_to=False,
            numbers=precision,
            attention="none",
        )

    def _prepare(self, rows: Sequence[str], options: EncodeOptions, limit: int) -> Prepared:  # noqa: ARG002
        pieces = [line.split() for line in self._tokenizer.tokenize_batch(rows)]
        room = limit - self._n_special
        return Prepared(
            np.array([min(len(row), room) + self._n_special for row in pieces], np.int32),
            np.array([len(row) > room for row in pieces]),
            [" ".join(row[:room]) for row in pieces],
        )

    # Reproducible rows come alone, as long as they are.
    def _vectors(self, prepared: Prepared, rows: np.ndarray, length: int | None) -> torch.Tensor:  # noqa: ARG002
        return torch.from_numpy(self._encoder.encode_sentences([prepared.rows[row] for row in rows]))


def _precision_of(device: str, settings: Settings) -> str:
    """Return fp32, or fp16 where that is asked for."""
    precision = precision_of(device, settings)
    if settings.precision == "auto":
        return "fp32"
    if precision == "bf16":
        raise UsageError("--precision bf16: LASER's official package has only fp32 and fp16. Take one of them.")
    return precision


def _import_package() -> Any:
    """Import what loads and runs checkpoints."""
    try:
        with _no_logs_set_up():
            from laser_encoders import models
    except (ImportError, ValueError) as exc:  # the latter is what the real fairseq raises on Python 3.11
        missing = exc.name if isinstance(exc, ImportError) and exc.name else "a fairseq that can be imported"
        raise UsageError(
            f"--engine laser_encoders: {missing} is not installed here. `make laser` installs LASER's official package "
            "with what it needs; see docs/laser.md."
        ) from exc
    return models


@contextmanager
def _no_logs_set_up() -> Iterator[None]:
    """Keep an import from setting up logs: the package's would go to stdout, which is for results."""
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)  # logging sets up nothing where there is a handler
    try:
        yield
    finally:
        root.removeHandler(handler)
