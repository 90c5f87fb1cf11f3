"""The table that a long run of the fuzzer ends with, and what all targets need."""

from __future__ import annotations

import pytest

from tests.fuzz.cases import REPORT


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was tried."""
    if REPORT.lines:
        terminalreporter.section("hostile input")
        terminalreporter.write_line(REPORT.table())
