"""LASER2 and the LASER3 students, chosen by the language of the texts."""

from __future__ import annotations

import gc
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import astuple
from pathlib import Path

from tasks.errors import DeviceFull, ModelNotFound, UsageError
from tasks.isolation import error_rows
from tasks.options import EncodeOptions
from tasks.ports import Computed
from tasks.settings import Settings
from workers.engines.laser.checkpoints import choose, files_of, published
from workers.engines.laser.download import Downloads
from workers.engines.laser.encoder import LaserEncoder, load_encoder
from workers.memory import DeviceMemory, is_out_of_memory

log = logging.getLogger(__name__)

#: Seconds that rows wait for their student's files. A chunk that waits longer is handed back and comes again: a large
#: download would outlast the time limits of its slot.
WAIT_S = 15.0


class LaserByLanguage:
    """Several checkpoints of which each call uses one: the student of its language, or else LASER2.

    The first checkpoint is loaded at once and stays. A student is loaded with the first rows that need it; the one
    that was not used for longest goes when the device has no room for another.

    The fingerprint is that of the first checkpoint and of the language list, as nobody knows which students a job will
    need; the published students are known by their names, which hold a version, those in a folder by their sizes.

    Args:
        names: of the checkpoints.
        folder: with their files.
        downloads: where missing files come from; None where the folder is somebody's own.
        device: ``cpu`` or ``cuda``.
        settings: of the worker.
        memory: of the device.
    """

    def __init__(
        self,
        names: Sequence[str],
        folder: Path,
        downloads: Downloads | None,
        device: str,
        settings: Settings,
        memory: DeviceMemory,
    ) -> None:
        self._names = names
        self._folder = folder
        self._downloads = downloads
        self._device = device
        self._settings = settings
        self._memory = memory
        self._first = self._last = load_encoder(names[0], folder, device, settings)
        #: In the order in which they were used.
        self._students: dict[str, LaserEncoder] = {}
        self.place = self._first.place
        self.weights = self._fingerprint()

    @property
    def batch_tokens(self) -> int:
        """The token budget of the checkpoint that was used last."""
        return self._last.batch_tokens

    @property
    def loaded(self) -> list[str]:
        """The checkpoints in memory."""
        return [self._names[0], *self._students]

    def check(self, options: EncodeOptions) -> str | None:
        """Say why no checkpoint can serve these options, or return None."""
        if options.language is None and options.language_field is None:
            return (
                "LASER's checkpoint is chosen by the language of the texts; give --language or --language-field, or "
                "name the checkpoint: --model laser:laser2"
            )
        if options.language is not None:
            try:
                checkpoint = choose(options.language)
            except UsageError as exc:
                return str(exc)
            if checkpoint not in self._names:
                return f"language {options.language!r} needs {checkpoint}.v1.pt, which is not in {self._folder}"
        return self._first.check(options.model_copy(update={"language": None}))

    def dim(self, options: EncodeOptions) -> int:
        """Return the length of a vector."""
        return self._first.dim(options)

    def encode(
        self, texts: Sequence[str], options: EncodeOptions, on_batch: Callable[[int], None] = lambda _: None
    ) -> Computed:
        """Encode texts in their order, all in one language.

        Raises:
            DeviceFull: there is no room for the language's student.
            StoreUnavailable: its files are still on their way.
        """
        try:
            self._last = self._engine(choose(str(options.language)), on_batch)
        except ModelNotFound as exc:  # rows of other languages go on
            return error_rows([str(exc)] * len(texts), self.dim(options))
        return self._last.encode(texts, options, on_batch)

    def _engine(self, name: str, on_batch: Callable[[int], None]) -> LaserEncoder:
        if name == self._names[0]:
            return self._first
        engine = self._students.pop(name, None) or self._load(name, on_batch)
        self._students[name] = engine
        return engine

    def _load(self, name: str, on_batch: Callable[[int], None]) -> LaserEncoder:
        files = files_of(name, self._folder)
        if self._downloads is not None:
            self._downloads.wait(files.names, WAIT_S)
        on_batch(0)  # the time that this takes is no batch's
        self._make_room((self._folder / files.weights).stat().st_size)
        log.info("Loading %s", name, extra={"action": "load"})
        try:
            engine = load_encoder(name, self._folder, self._device, self._settings)
        except Exception as exc:
            if is_out_of_memory(exc):
                raise DeviceFull from exc
            raise
        given, wanted = engine.dim(EncodeOptions()), self.dim(EncodeOptions())
        if given != wanted:
            raise ModelNotFound(f"{name} gives {given} numbers a text, and {self._names[0]} gives {wanted}.")
        return engine

    def _make_room(self, size_bytes: int) -> None:
        """Give up students until there is room for another one."""
        while self._students and self._memory.room_bytes < size_bytes:
            oldest = next(iter(self._students))
            log.info("Giving up %s for room", oldest, extra={"action": "load"})
            self._last = self._first
            del self._students[oldest]
            gc.collect()
            self._memory.release()

    def _fingerprint(self) -> str:
        digest = hashlib.blake2b(f"{self._first.weights} {astuple(published())}".encode(), digest_size=8)
        if self._downloads is None:
            for name in self._names[1:]:
                files = files_of(name, self._folder)
                sizes = [(self._folder / file).stat().st_size for file in files.names if (self._folder / file).exists()]
                digest.update(f"{name} {sizes}".encode())
        return digest.hexdigest()
