"""Stdin as a source's bytes: it can be looked at before it is read, and stays open."""

from __future__ import annotations

import codecs
import io
import sys
from typing import Any, cast

from tasks.errors import BadInput

#: Bytes that may be blank at the start before the input is taken for lines of text.
_MAX_BLANK_BYTES = 2**20


class Stdin(io.RawIOBase):
    """Stdin from its first byte, whatever was looked at; closing it closes nothing."""

    def __init__(self) -> None:
        self._head = b""

    def guess_format(self) -> str:
        """Return jsonl if the first byte that is not blank is ``{``, else txt; waits for that byte."""
        stdin, more = _buffer(), b" "
        while more and len(self._head) < _MAX_BLANK_BYTES and not self._head.strip():
            more = stdin.read1(2**16)
            self._head += more
        text = self._head.removeprefix(codecs.BOM_UTF8).lstrip()
        return "jsonl" if text.startswith(b"{") else "txt"

    def readable(self) -> bool:
        """Tell io that this can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer with what there is, and return how many bytes that are."""
        if not self._head:
            return _buffer().readinto1(buffer)
        n_bytes = min(len(buffer), len(self._head))
        buffer[:n_bytes], self._head = self._head[:n_bytes], self._head[n_bytes:]
        return n_bytes


def _buffer() -> io.BufferedReader:
    if sys.stdin is None:  # as a shell's <&- leaves it
        raise BadInput("-: standard input is closed; pipe something into it, or name files", source="stdin")
    return cast("io.BufferedReader", sys.stdin.buffer)
