"""State folders of embedded runs: what is in one, and which job lives where.

::

    STATE_DIR/runs/RUN/
        run.json      the jobs of this run and their store
        lock          held while somebody runs its server
        broker/       the private server's data and log
        store/        chunk inputs and results
        worker.log    what nodes and slots had to say
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import keys
from tasks.errors import UsageError

#: Unix socket paths stop at 108 bytes on Linux and 104 on macOS, the final zero included.
LONGEST_SOCKET_PATH = 100


@dataclass(frozen=True)
class Run:
    """One state folder."""

    folder: Path

    @classmethod
    def at(cls, state_dir: Path, name: str) -> Run:
        """Return the run of that name, its folder made if need be, for this user alone."""
        run = cls(state_dir.expanduser().resolve() / "runs" / name)
        run.make()
        return run

    def make(self) -> None:
        """Make the folder, for this user alone, unless it is there."""
        for part in (self.folder, self.folder / "broker", self.folder / "store"):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def lock(self) -> Path:
        """The file that whoever runs the server keeps locked."""
        return self.folder / "lock"

    @property
    def socket(self) -> Path:
        """The private server's socket, at a short path elsewhere if the folder's is too long."""
        path = self.folder / "broker" / "broker.sock"
        if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH:
            return path
        short = Path(tempfile.gettempdir()) / f"penstock-{os.getuid()}"
        short.mkdir(mode=0o700, exist_ok=True)
        found = short.stat()
        if found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise UsageError(f"{short} belongs to somebody else: set a shorter PENSTOCK_STATE_DIR, or another TMPDIR.")
        return short / f"{hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:16]}.sock"

    @property
    def worker_log(self) -> Path:
        """Where nodes and slots write their log."""
        return self.folder / "worker.log"

    def jobs(self) -> list[str]:
        """Return the jobs that were made in this run, oldest first."""
        return list((self._noted() or {}).get("jobs", []))

    @property
    def own_store_url(self) -> str:
        """The store in the folder."""
        return (self.folder / "store").as_uri()

    def store_url(self) -> str:
        """Return the store that the run's jobs live in: its own, unless another was named for them."""
        return (self._noted() or {}).get("store_url") or self.own_store_url

    @property
    def is_spent(self) -> bool:
        """Whether nobody needs the folder any more: no jobs are noted, and no note was lost."""
        return not self.jobs() and not self.has_lost_note

    @property
    def has_lost_note(self) -> bool:
        """Whether there may be jobs of which no note is left that can be read."""
        data = (self.folder / "broker" / "appendonlydir", self.folder / "store" / keys.MANIFESTS)
        return self._noted() is None and any(part.is_dir() for part in data)

    def note(self, job: str, store_url: str | None) -> None:
        """Add a job and its store, so that both are found without opening the server."""
        self.write_note([*(name for name in self.jobs() if name != job), job], store_url)

    def forget(self, job: str) -> None:
        """Drop a job that nobody will ask for again."""
        jobs = self.jobs()
        if job in jobs:
            self.write_note([name for name in jobs if name != job], self.store_url())

    def write_note(self, jobs: list[str], store_url: str | None) -> None:
        """Note which jobs there are. The note is on the disk before it takes the place of the old one."""
        file = self.folder / "run.json"
        draft = file.with_suffix(".tmp")
        with open(draft, "w", opener=private) as out:
            json.dump({"jobs": jobs, "store_url": store_url}, out)
            out.flush()
            os.fsync(out.fileno())
        draft.replace(file)

    def _noted(self) -> dict[str, Any] | None:
        try:
            return dict(json.loads((self.folder / "run.json").read_text()))
        except (FileNotFoundError, ValueError, TypeError):  # none yet, or torn when the machine stopped
            return None

    def remove(self) -> None:
        """Delete the folder with all that is in it; call this with the lock held.

        The lock goes last: until then nobody can begin anew in what is being deleted.
        """
        self.socket.unlink(missing_ok=True)
        for part in self.folder.iterdir():
            if part.is_dir():
                shutil.rmtree(part, ignore_errors=True)
            elif part != self.lock:
                part.unlink(missing_ok=True)
        self.lock.unlink(missing_ok=True)
        with suppress(OSError):  # somebody made it again meanwhile
            self.folder.rmdir()


def private(path: str, flags: int) -> int:
    """Open a file that is made for this user alone. For ``open(opener=...)``."""
    return os.open(path, flags, 0o600)


def runs(state_dir: Path) -> Iterator[Run]:
    """Yield the runs that there are, oldest first."""
    parent = state_dir.expanduser().resolve() / "runs"
    if parent.is_dir():
        folders = [path for path in parent.iterdir() if path.is_dir()]
        for folder in sorted(folders, key=lambda path: path.stat().st_mtime):
            yield Run(folder)


def find_run(state_dir: Path, job: str) -> Run | None:
    """Return the run in which a job was made, or None."""
    return next((run for run in runs(state_dir) if job in run.jobs()), None)
