"""Reading LASER's published files. Nothing in them is run: only numbers, words and settings are taken."""

from __future__ import annotations

import zipfile
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from tasks.errors import ModelNotFound
from workers.engines.laser.text_steps import MOST_SHARED, stamp_of
from workers.engines.laser.vocabulary import numbered
from workers.memory import is_out_of_memory

#: What torch, pickle and sentencepiece raise of files that are missing, damaged or somebody else's.
_FAULTS = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, EOFError, UnpicklingError),
    *(AssertionError, zipfile.BadZipFile, OverflowError),
)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say in one line that a file cannot be used, whatever is wrong in it.

    Raises:
        ModelNotFound: something was.
    """
    try:
        yield
    except FileNotFoundError as exc:
        raise ModelNotFound(f"{path} is missing; it is one of LASER's published files.") from exc
    except _FAULTS as exc:
        if is_out_of_memory(exc):  # no fault of the file's
            raise
        if isinstance(exc, OSError) and exc.errno is not None:  # nor are these; sentencepiece's own have no number
            raise ModelNotFound(
                f"{path} cannot be read ({exc.strerror}): look at its permissions and its disk."
            ) from exc
        reason = str(exc).strip().split("\n", 1)[0]
        # Its advice is to load the file without looking; this file is not to be trusted.
        why = "it is damaged, or holds other things" if isinstance(exc, UnpicklingError) else reason
        raise ModelNotFound(
            f"{path} is not LASER's published file ({why or type(exc).__name__}): remove it, or replace it."
        ) from exc


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint. Its numbers stay in the file until they are used; slots of a machine share those pages.

    Raises:
        ModelNotFound: it is missing, damaged or somebody else's.
    """
    with reading(path):
        is_mappable = zipfile.is_zipfile(path)  # torch wrote another form before version 1.6
        with torch.serialization.safe_globals([Namespace]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mappable)
        if not isinstance(checkpoint, dict):
            raise TypeError(f"it holds a {type(checkpoint).__name__}")
    return checkpoint


def read_vocabulary(path: Path) -> Mapping[str, int]:
    """Read the numbers of a student's pieces; students with the same ones share them.

    Raises:
        ModelNotFound: it is missing, damaged or somebody else's.
    """
    with reading(path):
        return _vocabulary(path, stamp_of(path))


@lru_cache(MOST_SHARED)
def _vocabulary(path: Path, _stamp: tuple[int, int]) -> Mapping[str, int]:
    with path.open(encoding="utf-8") as lines:
        return numbered(lines)
