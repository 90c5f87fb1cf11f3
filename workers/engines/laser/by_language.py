"""LASER2 and the LASER3 students, chosen by the language of the texts."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import astuple
from pathlib import Path

from tasks.errors import DeviceFull, ModelNotFound, UsageError
from tasks.isolation import error_rows
from tasks.options import EncodeOptions
from tasks.ports import Computed
from tasks.settings import Settings
from workers.engines.laser.checkpoints import LASER2, choose, files_of, published
from workers.engines.laser.download import Downloads
from workers.engines.laser.encoder import LaserEncoder, load_encoder
from workers.engines.laser.loading import fingerprint
from workers.engines.laser.reading import reading
from workers.engines.laser.text_steps import stamp_of
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
    need; the published students are known by their names, which hold a version, those in a folder by their contents.

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
        #: Students that cannot be used: what is wrong, and what their files were like.
        self._faulty: dict[str, tuple[str, list[tuple[int, int]]]] = {}
        self._own = [name for name in names if downloads is None and name != LASER2]
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
                checkpoint = self._choose(options.language)
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
            self._last = self._engine(self._choose(str(options.language)), on_batch)
        except ModelNotFound as exc:  # rows of other languages go on
            return error_rows([str(exc)] * len(texts), self.dim(options))
        if problem := self._last.check(options.model_copy(update={"language": None})):  # of options that others take
            return error_rows([problem] * len(texts), self.dim(options))
        return self._last.encode(texts, options, on_batch)

    def _choose(self, language: str) -> str:
        return choose(language, self._own)

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
        stamps = [stamp_of(path) for path in map(self._folder.joinpath, files.names) if path.is_file()]
        problem, seen = self._faulty.get(name, ("", None))
        if seen == stamps:
            raise ModelNotFound(problem)
        with reading(self._folder / files.weights):
            size_bytes = (self._folder / files.weights).stat().st_size
        self._make_room(name, size_bytes)
        try:
            return self._read(name)
        except ModelNotFound as exc:
            self._faulty[name] = str(exc), stamps
            raise
        except Exception as exc:
            if is_out_of_memory(exc):
                raise DeviceFull from exc
            raise

    def _read(self, name: str) -> LaserEncoder:
        log.info("Loading %s", name, extra={"action": "load"})
        engine = load_encoder(name, self._folder, self._device, self._settings)
        given, wanted = engine.dim(EncodeOptions()), self.dim(EncodeOptions())
        if given != wanted:
            raise ModelNotFound(f"{name} gives {given} numbers a text, and {self._names[0]} gives {wanted}.")
        log.info("Loaded %s", name, extra={"action": "load", "weights": engine.weights})
        return engine

    def _make_room(self, name: str, size_bytes: int) -> None:
        """Give up students until there is room for another one.

        Raises:
            DeviceFull: there is none without them either.
        """
        while self._students and self._memory.room_bytes < size_bytes:
            oldest = next(iter(self._students))
            log.info("Giving up %s for room", oldest, extra={"action": "load"})
            self._last = self._first
            del self._students[oldest]
            gc.collect()
            self._memory.release()
        if self._memory.room_bytes < size_bytes:
            room_mb = self._memory.room_bytes / 1e6
            raise DeviceFull(
                f"{name} takes {size_bytes / 1e6:.0f} MB, and the device has room for {room_mb:.0f} MB. End what takes "
                "its memory, run fewer slots, or raise --memory-ratio."
            )

    def _fingerprint(self) -> str:
        files = {file for name in self._own for file in files_of(name, self._folder).names}
        paths = [path for path in map(self._folder.joinpath, sorted(files)) if path.is_file()]
        return fingerprint(paths, f"{self._first.weights} {astuple(published())} {[path.name for path in paths]}")
