"""Opening one checkpoint of LASER: its model, its text steps, and the fingerprint of both."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import ModelNotFound, UsageError
from tasks.settings import Settings
from workers.engines.laser import text_steps
from workers.engines.laser.bilstm import BiLstm
from workers.engines.laser.checkpoints import LASER2, files_of
from workers.engines.laser.reading import read_checkpoint, read_vocabulary, reading
from workers.engines.laser.text_steps import TextSteps
from workers.engines.laser.transformer import Transformer, is_masked, weights_of
from workers.engines.laser.vocabulary import checked
from workers.engines.precision import DTYPES, choose_precision


@dataclass(frozen=True)
class Opened:
    """One checkpoint in memory.

    Attributes:
        model: the encoder.
        steps: from texts to its tokens.
        weights: content fingerprint.
        pads: whether it computes the padding of a batch.
        precision: of its numbers.
    """

    model: BiLstm | Transformer
    steps: TextSteps
    weights: str
    pads: bool
    precision: str


def open_checkpoint(checkpoint: str, folder: Path, device: str, settings: Settings) -> Opened:
    """Read a checkpoint from the files in a folder, and put it onto a device.

    Raises:
        ModelNotFound: a file is missing, damaged or somebody else's.
        UsageError: a setting is not for LASER.
    """
    precision = precision_of(device, settings)
    files = files_of(checkpoint, folder)
    content, dtype = read_checkpoint(folder / files.weights), DTYPES[precision]
    numbers: Mapping[str, int]
    model: BiLstm | Transformer
    if checkpoint == LASER2:
        with reading(folder / files.weights):
            model, begins = BiLstm(content, dtype, device), False
            numbers = checked(content["dictionary"], content["params"]["num_embeddings"])
    else:
        numbers = read_vocabulary(folder / str(files.vocabulary))
        with reading(folder / files.weights):
            _compare(content, len(numbers), folder / files.weights, folder / str(files.vocabulary))
            model = Transformer(content, len(numbers) + is_masked(content), dtype, device)
            begins = bool(content["cfg"]["model"].prepend_bos)
    with reading(folder / files.pieces):
        steps = TextSteps(folder / files.pieces, numbers, begins=begins)
    facts = f"laser {text_steps.FACTS} {precision}"
    weights = fingerprint([folder / name for name in files.names], facts)
    return Opened(model.eval(), steps, weights, isinstance(model, Transformer), precision)


def _compare(content: dict[str, Any], n_tokens: int, weights: Path, vocabulary: Path) -> None:
    """Refuse the vocabulary of another checkpoint, which would give its numbers to other pieces.

    Raises:
        ModelNotFound: it has more or fewer tokens than the embedding has rows.
    """
    n_rows = len(weights_of(content)["embed_tokens.weight"]) - is_masked(content)
    if n_rows != n_tokens:
        raise ModelNotFound(
            f"{vocabulary} has {n_tokens} tokens, with the special ones, and {weights} is for {n_rows}: one of them is "
            "cut off or of another checkpoint. Replace it."
        )


def precision_of(device: str, settings: Settings) -> str:
    """Return the precision, and refuse what does nothing for LASER.

    Raises:
        UsageError: a setting is not for LASER.
    """
    if settings.backend != "torch":
        raise UsageError(f"--backend {settings.backend}: LASER runs on plain torch. Leave it out.")
    for option in ("compile", "trust_remote_code"):
        if getattr(settings, option):
            raise UsageError(f"--{option.replace('_', '-')} is not for LASER. Leave it out.")
    return choose_precision(device, settings)


def fingerprint(files: list[Path], facts: str) -> str:
    """Hash what vectors depend on: the files, and facts such as the numbers' type and the versions of the text steps.

    Raises:
        ModelNotFound: a file cannot be read.
    """
    digest = hashlib.blake2b(facts.encode(), digest_size=8)
    for file in files:
        with reading(file), file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "blake2b").digest())
    return digest.hexdigest()
