"""Logs: a constant sentence plus fields, as a plain line for people or a JSON line for machines."""

from __future__ import annotations

import datetime
import json
import logging
import sys
from typing import Any

from tasks.redaction import redact_text

_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def log_to_stderr(form: str) -> None:
    """Send penstock's messages from INFO on, and other libraries' warnings, to stderr.

    Args:
        form: ``plain`` or ``json``.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else PlainFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in ("tasks", "workers"):
        logging.getLogger(name).setLevel(logging.INFO)


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return what ``extra=`` added to a message."""
    return {name: value for name, value in vars(record).items() if name not in _STANDARD and name != "data"}


class PlainFormatter(logging.Formatter):
    """``2026-01-31T12:00:00 INFO Chunk recorded  job=encode-3f9a1c02de chunk=4``."""

    def format(self, record: logging.LogRecord) -> str:
        """Put a message and its fields into one line."""
        head = f"{_time(record, 'seconds')} {record.levelname} {record.getMessage()}"
        fields = " ".join(f"{name}={value}" for name, value in fields_of(record).items() if name != "action")
        line = f"{head}  {fields}" if fields else head
        return redact_text(f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the fields, and the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Put a message and its fields into one object."""
        line = {
            "time": _time(record, "milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        shown = {name: redact_text(value) if isinstance(value, str) else value for name, value in line.items()}
        return json.dumps(shown, default=str, ensure_ascii=False)


def _time(record: logging.LogRecord, precision: str) -> str:
    return datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec=precision)
