"""``penstock`` as a person runs it, in this process or in one of its own, and what must hold of every run."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from producer import cli
from tests.acceptance.conftest import PENSTOCK

#: What a command may exit with; see tasks/errors.py. 130 is Ctrl-C.
EXIT_CODES = {0, 1, 2, 3, 4, 130}
#: Lines of a message at most: an error of penstock is one line, a wrong option a box of several.
MOST_LINES = 12
#: Characters of a line at most: a file's name, a place, a few names of fields.
MOST_CHARS = 1500
#: Stands in the text of records only, so that no message may hold it.
SECRET = "fee fie foe xyzzy plugh"  # noqa: S105 - no password
#: Seconds after which a process counts as hung.
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    def check(self) -> Outcome:
        """Fail unless this is a clear answer."""
        said = f"exit {self.code}: {self.out[-2000:]!r} {self.err[-2000:]!r}"
        assert self.code in EXIT_CODES, said
        assert "Traceback" not in self.err, said
        assert "a fault in penstock" not in self.err, said
        assert self.err or self.out, "it ended without a word"
        assert SECRET not in self.out + self.err, said
        assert len(self.err.splitlines()) <= MOST_LINES, said
        if "Usage: " not in self.err:  # Typer's box repeats what was typed as it is
            assert all(c.isprintable() or c == "\n" for c in self.err), said
        return self

    @property
    def is_refused(self) -> bool:
        """Whether the command did not do what it was asked for."""
        return self.code != 0


def call(*arguments: str, folder: Path, environment: Mapping[str, str] | None = None, stdin: bytes = b"") -> Outcome:
    """Run a command in this process, as ``penstock`` does it."""
    with _standing_in(folder, environment or {}), _streams(stdin) as (out, err):
        before, sys.argv = sys.argv, ["penstock", *arguments]
        handler = signal.getsignal(signal.SIGTERM)
        try:
            cli.main()
            code = 0
        except SystemExit as exc:
            code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
        finally:
            sys.argv = before
            signal.signal(signal.SIGTERM, handler)
            sys.stdout.flush()
            sys.stderr.flush()
    return Outcome(code, out.getvalue().decode(), err.getvalue().decode())


def run(
    *arguments: str | bytes,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    limits: Mapping[int, int] | None = None,
    stdin: int | None = None,
) -> Outcome:
    """Run a command in a process of its own.

    Args:
        arguments: of the command.
        folder: where it runs, with a state folder of its own.
        environment: variables beside those of this process.
        limits: resource (RLIMIT_AS, ...) -> bytes.
        stdin: a file descriptor; nothing by default.
    """

    def limit() -> None:
        for kind, number in (limits or {}).items():
            resource.setrlimit(kind, (number, number))

    done = subprocess.run(
        [*PENSTOCK, *arguments],
        cwd=folder,
        env=_environment(folder, environment or {}),
        stdin=subprocess.DEVNULL if stdin is None else stdin,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
        preexec_fn=limit,
    )
    return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())


def check_line(exc: BaseException) -> None:
    """Fail unless an error is one line that a person can read, without a record's text."""
    line = str(exc)
    assert SECRET not in line, line
    assert "\n" not in line, line
    assert len(line) < MOST_CHARS, line


def leftovers(folder: Path) -> list[str]:
    """Return the drafts in a folder, which are only there while something is written."""
    return [str(path) for path in folder.rglob(".*") if path.suffix in {".tmp", ".old"}]


def _environment(folder: Path, changes: Mapping[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    return {**inherited, "XDG_STATE_HOME": str(folder / "state"), "COLUMNS": "400", **changes}


@contextlib.contextmanager
def _standing_in(folder: Path, changes: Mapping[str, str]) -> Iterator[None]:
    before, here = dict(os.environ), Path.cwd()
    wanted = _environment(folder, changes)
    os.environ.clear()
    os.environ.update(wanted)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _streams(stdin: bytes) -> Iterator[tuple[io.BytesIO, io.BytesIO]]:
    """Replace the standard streams by some that encode as strictly as the real ones."""
    before = sys.stdin, sys.stdout, sys.stderr
    out, err = io.BytesIO(), io.BytesIO()
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.BytesIO(stdin)))  # type: ignore[arg-type]
    sys.stdout = io.TextIOWrapper(out, "utf-8", write_through=True)
    sys.stderr = io.TextIOWrapper(err, "utf-8", "backslashreplace", write_through=True)
    try:
        yield out, err
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.detach()
        sys.stdin, sys.stdout, sys.stderr = before
