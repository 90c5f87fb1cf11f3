"""What a person sees of an error: one line, an exit code, and nothing that a terminal obeys."""

from __future__ import annotations

import json

import pytest

from producer.commands import encode, jobs
from tests.fuzz.commands import call


@pytest.fixture
def fail(monkeypatch):
    """Return a function that makes ``penstock jobs`` fail with an exception."""

    def fail_with(exc: BaseException) -> None:
        def load(**_: object) -> None:
            raise exc

        monkeypatch.setattr(jobs.Settings, "load", load)

    return fail_with


@pytest.mark.parametrize(
    ("exc", "line"),
    [
        (PermissionError(13, "Permission denied", "/x/penstock"), "/x/penstock: Permission denied."),
        (
            MemoryError(),
            "no memory is left. Smaller chunks (--chunk-rows, --chunk-bytes) and smaller records need less.",
        ),
    ],
)
def test_errors_of_the_system_are_one_line(tmp_path, fail, exc, line):
    """They say what the system said."""
    fail(exc)
    outcome = call("jobs", folder=tmp_path)
    assert (outcome.code, outcome.err) == (1, f"penstock: {line}\n")


def test_a_fault_of_our_own_is_one_line_without_what_it_was_about(tmp_path, fail):
    """The text of a foreign exception may quote a record."""
    fail(KeyError("secret"))
    outcome = call("jobs", folder=tmp_path)
    assert outcome.code == 1
    assert outcome.err.startswith("penstock: a fault in penstock: KeyError in load, test_cli.py:")
    assert "secret" not in outcome.err


def test_debug_shows_the_traceback(tmp_path, fail):
    """Which a report of a fault needs; without the passwords of addresses in it."""
    fail(KeyError("no redis://:PASSWORD@host/0 here"))
    done = call("jobs", "--debug", folder=tmp_path)
    assert done.code == 1
    assert "Traceback" in done.err
    assert "KeyError: 'no redis://***@host/0 here'" in done.err


def test_what_a_terminal_would_obey_is_escaped(tmp_path):
    """A file's name can hold it."""
    outcome = call("encode", "\x1b2J\n\u202e.txt", "--model", "fake", folder=tmp_path)
    assert (outcome.code, outcome.err) == (4, "penstock: \\x1b2J\\n\\u202e.txt: no such file\n")


def test_a_name_that_is_no_utf8_is_an_escape_in_json(tmp_path, monkeypatch):
    """What a script reads is JSON all the same."""
    monkeypatch.setattr(encode, "estimate", lambda *_: {"name": "\udcff"})
    (tmp_path / "a.txt").write_text("x\n")
    outcome = call("encode", "a.txt", "--model", "fake", "--dry-run", "--json", folder=tmp_path)
    assert outcome.code == 0
    assert json.loads(outcome.out) == {"name": "\udcff"}
