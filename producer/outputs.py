"""What --out names on this machine: a file, or a folder of shards."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from producer.columns import ResultInfo, check_tables
from producer.drafts import check_draft, draft_files, draft_folder
from producer.extensions import Format
from producer.shards import is_shard_file, note_errors, write_shards
from tasks.errors import OutputExists, UsageError


class Output(Protocol):
    """A place for results."""

    def check(self, *, overwrite: bool) -> None:
        """Find out before the work what would keep the results from being written."""

    def write(self, tables: Iterable[pa.Table], info: ResultInfo) -> list[str]:
        """Write the results and return the names of what was written. An older output is replaced."""


@dataclass(frozen=True)
class LocalFile:
    """One file; beside one that cannot say which rows have an error, their list if there are any.

    Attributes:
        out: as the user wrote it.
        path: the same, absolute and without symbolic links.
        format: of the file.
        top_k: how many pairs of each query; all if None.
    """

    out: str
    path: Path
    format: Format[Any]
    top_k: int | None

    def check(self, *, overwrite: bool) -> None:
        """Look at the parent folder and what is there.

        Raises:
            UsageError: the parent folder is missing or not writable.
            OutputExists: the file is there, and not to be replaced.
        """
        check_name(self.out, self.path)
        check_parent(self.out, self.path)
        if self.path.exists() and not overwrite:
            raise exists(self.out)

    def write(self, tables: Iterable[pa.Table], info: ResultInfo) -> list[str]:
        """Write the file. A list of errors that an older file left is replaced or removed with it."""
        errors_path = errors_beside(self.path)
        names = {self.path: False, **({errors_path: True} if self.format.lists_errors else {})}
        with draft_files(names) as (file, *lists), self.format.open(file, info) as append:
            tables = check_tables(tables, info)
            for errors in lists:
                tables = note_errors(tables, info.layout, errors)
            for item in self.format.arrange(tables, self.top_k):
                append(item)
        has_errors = self.format.lists_errors and errors_path.exists()
        return [self.out, *([f"{self.out}.errors.jsonl"] if has_errors else [])]


@dataclass(frozen=True)
class LocalFolder:
    """A folder of shards.

    Attributes:
        out: as the user wrote it.
        path: the same, absolute and without symbolic links.
        top_k: how many pairs of each query; all if None.
    """

    out: str
    path: Path
    top_k: int | None

    def check(self, *, overwrite: bool) -> None:
        """Look at the parent folder and what is there.

        Raises:
            UsageError: the folder cannot be replaced, or holds files that are not ours.
            OutputExists: the folder is not empty, and not to be replaced.
        """
        check_name(self.out, self.path)
        check_parent(self.out, self.path)
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise UsageError(f"--out {self.out}: that is a file, not a folder. Name it without the slash.")
        if self.path.is_mount() or self.path == Path.cwd():
            raise UsageError(
                f"--out {self.out}: a mounted or the current folder cannot be replaced as a whole. "
                f"Name a folder in it: {Path(self.out) / 'results'}/."
            )
        self._check_content(overwrite=overwrite)

    def write(self, tables: Iterable[pa.Table], info: ResultInfo) -> list[str]:
        """Write the shards in a folder beside it, which then takes its name."""
        names: list[str] = []
        with draft_folder(self.path) as draft:
            write_shards(tables, info, draft, self.top_k, lambda file: names.append(file.name))
        return [f"{self.out.rstrip('/')}/{name}" for name in names]

    def _check_content(self, *, overwrite: bool) -> None:
        names = sorted(entry.name for entry in self.path.iterdir())
        foreign = [name for name in names if not is_shard_file(name)]
        if foreign:
            raise UsageError(
                f"--out {self.out}: the folder holds other files, such as {foreign[0]}, and is not replaced. "
                f"Name a folder in it: {Path(self.out) / 'results'}/."
            )
        if names and not overwrite:
            raise exists(self.out)


def exists(out: str, option: str = "--out") -> OutputExists:
    """Return the error for an output that is there already."""
    return OutputExists(f"{option} {out} exists already. Name another, or pass --overwrite.", out=out)


def check_name(out: str, path: Path, option: str = "--out") -> None:
    """Find out early whether the drafts can have their names, which are longer than those of the results.

    Raises:
        UsageError: the name is too long.
    """
    try:
        check_draft(errors_beside(path))
    except (OSError, ValueError) as exc:
        raise no_name(out, exc, option) from exc


def no_name(out: str, exc: Exception, option: str = "--out") -> UsageError:
    """Return the error for what cannot be a file's name."""
    reason = exc.strerror if isinstance(exc, OSError) else "a loop of links, or not a name"
    return UsageError(f"{option} {out}: nothing can be written there ({reason}). Choose another name.", out=out)


def errors_beside(path: Path) -> Path:
    """Return the path of the list of errors beside a file."""
    return path.parent / f"{path.name}.errors.jsonl"


def check_parent(out: str, path: Path, option: str = "--out") -> None:
    """Find out early whether something can be written beside what will be there.

    Raises:
        UsageError: the folder is missing, or not to be written to.
    """
    parent = path.parent
    if not parent.is_dir():
        raise UsageError(f"{option} {out}: there is no folder {parent}. Make it: mkdir -p {shlex.quote(str(parent))}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(f"{option} {out}: you may not write to the folder {parent}. Name another with {option}.")
