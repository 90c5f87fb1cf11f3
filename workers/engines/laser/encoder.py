"""One checkpoint of LASER with penstock's batching."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from tasks.options import EncodeOptions
from tasks.ports import Computed
from tasks.settings import Settings
from workers.engines.batched import BatchedEngine, Loaded
from workers.engines.blocks import NO_LIMIT, Prepared
from workers.engines.features import to_device
from workers.engines.laser.checkpoints import refusal
from workers.engines.laser.loading import open_checkpoint
from workers.engines.laser.text_steps import EOS, PAD


class LaserEncoder(BatchedEngine[str, EncodeOptions]):
    """LASER2 or one LASER3 student on one device. Not yet run on a GPU.

    Args:
        checkpoint: its name.
        folder: with its files.
        device: ``cpu`` or ``cuda``.
        settings: of the worker.

    Raises:
        ModelNotFound: a file is missing, damaged or somebody else's.
        UsageError: a setting is not for LASER.
    """

    NOT_FINITE = "the model gave a vector with numbers that are not finite"

    def __init__(self, checkpoint: str, folder: Path, device: str, settings: Settings) -> None:
        self._checkpoint = checkpoint
        super().__init__(self._open(folder, device, settings), device, settings)
        self._dim = self._run_sample().shape[1]

    def check(self, options: EncodeOptions) -> str | None:
        """Say why this checkpoint cannot serve these options, or return None."""
        if options.language is not None and (problem := refusal(self._checkpoint, options.language)):
            return problem
        if options.prompt is not None or options.prompt_name is not None:
            return "LASER was trained without prompts; leave out --prompt and --prompt-name"
        if options.truncate_dim is not None:
            return "LASER's vectors are not made to be cut; leave out --truncate-dim"
        if options.max_tokens and options.max_tokens <= self._n_special:
            return f"--max-tokens {options.max_tokens} leaves no room beside the {self._n_special} special tokens"
        return None

    def dim(self, options: EncodeOptions) -> int:  # noqa: ARG002 - LASER's vectors are of one length
        """Return the length of a vector."""
        return self._dim

    def encode(
        self, texts: Sequence[str], options: EncodeOptions, on_batch: Callable[[int], None] = lambda _: None
    ) -> Computed:
        """Encode texts in their order."""
        return self._compute(texts, options, on_batch)

    def _open(self, folder: Path, device: str, settings: Settings) -> Loaded:
        """Load the checkpoint."""
        opened = open_checkpoint(self._checkpoint, folder, device, settings)
        self._model, self._steps, self._n_special = opened.model, opened.steps, opened.steps.n_special
        return Loaded(
            model=opened.model,
            weights=opened.weights,
            most=NO_LIMIT,  # positions are sines, which go on for ever
            pads=opened.pads,
            can_pad_to=True,
            numbers=opened.precision,
            attention="sdpa" if opened.pads else "none",
        )

    def _prepare(self, rows: Sequence[str], options: EncodeOptions, limit: int) -> Prepared:  # noqa: ARG002
        tokens = self._steps(rows)
        truncated = np.array([len(row) > limit for row in tokens])
        cut = [np.append(row[: limit - 1], np.int32(EOS)) if len(row) > limit else row for row in tokens]
        return Prepared(np.array([len(row) for row in cut], np.int32), truncated, cut)

    def _prepare_probe(self, texts: Sequence[str], limit: int) -> Prepared:
        return self._prepare(texts, EncodeOptions(), limit)

    def _forward(
        self, prepared: Prepared, rows: np.ndarray, options: EncodeOptions | None, length: int | None
    ) -> torch.Tensor:
        vectors = self._vectors(prepared, rows, length)
        if options is not None and options.normalize:
            vectors = torch.nn.functional.normalize(vectors, p=2, dim=1)
        return vectors

    @torch.inference_mode()
    def _vectors(self, prepared: Prepared, rows: np.ndarray, length: int | None) -> torch.Tensor:
        """Run rows as one batch, each padded to ``length`` tokens if that is given. Returns (n_rows, dim)."""
        lengths = prepared.lengths[rows].astype(np.int64)
        tokens = np.full((len(rows), length or int(lengths.max())), PAD, np.int64)
        for i, row in enumerate(rows):
            tokens[i, : lengths[i]] = prepared.rows[row]
        on_device = to_device(torch.from_numpy(tokens), self._device)
        vectors: torch.Tensor = self._model(on_device, torch.from_numpy(lengths), is_fixed=length is not None)
        return vectors

    def _size(self, row: str) -> int:
        return len(row)


def load_encoder(checkpoint: str, folder: Path, device: str, settings: Settings) -> LaserEncoder:
    """Load a checkpoint with penstock's own reader, or with LASER's official package where that is set.

    Raises:
        ModelNotFound: a file is missing, damaged or somebody else's.
        UsageError: a setting is not for LASER, or the package is not there.
    """
    if settings.engine == "laser_encoders":
        from workers.engines.laser_encoders import OfficialLaserEncoder

        return OfficialLaserEncoder(checkpoint, folder, device, settings)
    return LaserEncoder(checkpoint, folder, device, settings)
