"""Local files and folders that appear under their names whole, or not at all.

They are written under a temporary name beside the final one, forced to disk and renamed. Whatever ends the
writing early, Ctrl-C included, removes the draft and leaves what was there before.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def draft_file(path: Path, *, drop_empty: bool = False) -> Iterator[IO[bytes]]:
    """Open a file that gets its name when the block ends well.

    Args:
        path: the final name; a file of that name is replaced.
        drop_empty: an empty draft means that there shall be no such file, not even an older one.
    """
    with draft_files({path: drop_empty}) as (file,):
        yield file


@contextmanager
def draft_files(names: Mapping[Path, bool]) -> Iterator[list[IO[bytes]]]:
    """Open files that belong together: they get their names when all of them are on the disk.

    Args:
        names: the final names; for each, whether an empty draft is dropped as above.
    """
    drafts = {_beside(path, "tmp"): path for path in names}
    try:
        with ExitStack() as opened:
            files: list[IO[bytes]] = [opened.enter_context(draft.open("wb")) for draft in drafts]
            yield files
            for file in files:
                file.flush()
                os.fsync(file.fileno())
        for draft, path in drafts.items():
            if names[path] and not draft.stat().st_size:
                path.unlink(missing_ok=True)
            else:
                draft.replace(path)
    finally:
        for draft in drafts:
            draft.unlink(missing_ok=True)


@contextmanager
def draft_folder(path: Path) -> Iterator[Path]:
    """Make a folder that gets its name when the block ends well; a folder of that name is replaced."""
    draft = _beside(path, "tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
        _replace_folder(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _replace_folder(draft: Path, path: Path) -> None:
    """Put draft in the place of path: the old folder is renamed away, and back if the next rename fails."""
    old = _beside(path, "old")
    try:
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.replace(old)
        draft.replace(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.replace(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def check_draft(path: Path) -> None:
    """Find out whether a file or folder of this name can be drafted.

    Raises:
        OSError, ValueError: the name is too long for the draft's beside it, or no name at all.
    """
    with suppress(FileNotFoundError):
        _beside(path, "tmp").lstat()


def _beside(path: Path, suffix: str) -> Path:
    return path.parent / f".{path.name}.{os.getpid()}.{suffix}"
