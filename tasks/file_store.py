"""A store in a local or shared folder, written so that what it took survives a power cut.

An object is written beside its name, forced to disk, and renamed: no reader ever sees half of one. The folder's entry
is forced to disk too, before ``put`` returns, because the ledger names the object right after.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tasks import keys
from tasks.errors import DamagedObject, StoreUnavailable, UsageError

#: What a person does about an error of the file system. All of them pass: somebody makes room, mounts or allows.
_REMEDIES = {
    errno.ENOSPC: "The disk is full: make room.",
    errno.EDQUOT: "The quota is used up: make room, or ask for more.",
    errno.EROFS: "It is mounted read-only: mount it for writing.",
    errno.EACCES: "This user has no right to: change the folder's owner or mode.",
    errno.EPERM: "This user has no right to: change the folder's owner, mode or attributes.",
}
#: Some network file systems cannot force a folder to disk; they write its entries at once.
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP}
#: Passes over a folder that fills up again while it is deleted.
_DELETE_PASSES = 5


class FileStore:
    """Objects as files below a folder."""

    def __init__(self, url: str) -> None:
        """Open the folder that a URL names; it is made if it is not there.

        Raises:
            UsageError: the URL names no folder.
            StoreUnavailable: the folder cannot be made.
        """
        parts = urlsplit(url)
        if parts.netloc not in {"", "localhost"} or not parts.path:
            raise UsageError(f"{url}: a folder is named as file:///PATH, with three slashes.")
        self._folder = Path(unquote(parts.path))
        self.url = url
        with self._reaching("its folder"):
            try:
                make_folder(self._folder)
            except (FileExistsError, NotADirectoryError) as exc:
                raise UsageError(f"{url}: {exc.filename} is no folder.") from exc

    def put(self, key: str, data: bytes) -> None:
        """Write an object whole."""
        path = self._folder / key
        self._check_mount()
        with self._reaching(key), _draft(path, data) as draft:
            draft.replace(path)
            _sync_folder(path.parent)

    def create(self, key: str, data: bytes) -> bool:
        """Write an object unless the key is taken."""
        path = self._folder / key
        with self._reaching(key), _draft(path, data) as draft:
            try:
                os.link(draft, path)  # unlike a rename, it leaves what is there
            except FileExistsError:
                return False
            _sync_folder(path.parent)
        return True

    def get(self, key: str) -> bytes:
        """Read an object."""
        return self._read(key, Path.read_bytes)

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Read bytes of an object."""

        def read(path: Path) -> bytes:
            with path.open("rb") as file:
                file.seek(start)
                return file.read(stop - start)

        if data := self._read(key, read):
            return data
        raise DamagedObject(f"{key} in {self.url} ends before byte {start}.", key=key)

    def delete(self, key: str) -> None:
        """Remove an object."""
        with self._reaching(key):
            (self._folder / key).unlink(missing_ok=True)

    def list_keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys below a folder, in no order."""
        with self._reaching(prefix):
            for path in _files(self._folder / prefix):
                yield path.relative_to(self._folder).as_posix()

    def measure_folder(self, prefix: str) -> tuple[int, int]:
        """Return how many objects are below a folder, and their bytes."""
        count = size_bytes = 0
        with self._reaching(prefix):
            for path in _files(self._folder / prefix):
                count += 1
                size_bytes += path.stat().st_size
        return count, size_bytes

    def delete_folder(self, prefix: str) -> None:
        """Remove all objects below a folder."""
        with self._reaching(prefix):
            _delete_tree(self._folder / prefix)

    def _read(self, key: str, read: Callable[[Path], bytes]) -> bytes:
        with self._reaching(key):
            try:
                return read(self._folder / key)
            except FileNotFoundError as exc:
                if key != keys.STORE_ID:
                    self._check_mount()
                raise DamagedObject(f"{key} is missing in {self.url}.", key=key) from exc

    def _check_mount(self) -> None:
        """Refuse a folder that has lost the store's id: without its disk, every object would seem to be missing."""
        with self._reaching(keys.STORE_ID):
            if not (self._folder / keys.STORE_ID).exists():
                raise StoreUnavailable(f"The store {self.url} is not there: {keys.STORE_ID} is missing. Mount it.")

    @contextmanager
    def _reaching(self, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            remedy = _REMEDIES.get(exc.errno or 0, "")
            line = f"The store {self.url} failed on {key}: {exc.strerror or exc}. {remedy}"
            raise StoreUnavailable(line.rstrip(), key=key) from exc


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, each entry forced to disk, each for no more users than the one above it."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(mode=_mode(folder.parent), exist_ok=True)
    _sync_folder(folder.parent)


@contextmanager
def _draft(path: Path, data: bytes) -> Iterator[Path]:
    """Write bytes to disk beside their name; what is left of the draft afterwards goes, whatever happens."""
    make_folder(path.parent)
    draft = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    try:
        # The folder says who may read what is in it, whatever the umask of each client and worker.
        mode = _mode(path.parent) & 0o666
        with open(draft, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield draft
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def _mode(folder: Path) -> int:
    return folder.stat().st_mode & 0o777


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as exc:
        if exc.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, drafts aside, without holding a listing."""
    with contextlib.ExitStack() as stack:
        try:
            entries = stack.enter_context(os.scandir(folder))
        except FileNotFoundError:
            return
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files(Path(entry.path))
            elif not entry.name.startswith("."):
                yield Path(entry.path)


def _delete_tree(folder: Path) -> None:
    """Delete a folder without holding a listing (shutil.rmtree holds one). A late slot may still write into it."""
    for turn in range(1, _DELETE_PASSES + 1):
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        _delete_tree(Path(entry.path))
                    else:
                        Path(entry.path).unlink(missing_ok=True)
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError as exc:
            if exc.errno != errno.ENOTEMPTY or turn == _DELETE_PASSES:
                raise
        else:
            return
