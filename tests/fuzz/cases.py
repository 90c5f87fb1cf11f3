"""Numbered cases: how many a target gets, what a failure says, and what was tried in all."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

#: Cases of all targets together.
TOTAL = int(os.environ.get("PENSTOCK_FUZZ_CASES", "500"))
#: The number of the one case to try.
ONLY = os.environ.get("PENSTOCK_FUZZ_ONLY")
#: Failures after which a target is given up: the first few say enough.
MOST_FAILURES = 5
#: Seconds that a single case may take before it counts as a hang; most take milliseconds.
HANG_S = 20.0


@dataclass
class Line:
    """What became of one target."""

    cases: int = 0
    refused: int = 0
    seconds: float = 0.0


class Report:
    """Targets by their name, in the order in which they ran."""

    def __init__(self) -> None:
        self.lines: dict[str, Line] = {}

    def add(self, target: str, *, refused: bool, seconds: float = 0.0) -> None:
        """Count one case."""
        line = self.lines.setdefault(target, Line())
        line.cases += 1
        line.refused += refused
        line.seconds += seconds

    def table(self) -> str:
        """Return all lines as a Markdown table."""
        rows = [f"| {name} | {n.cases:,} | {n.refused:,} | {n.seconds:.1f} s |" for name, n in self.lines.items()]
        total = sum(line.cases for line in self.lines.values())
        seconds = sum(line.seconds for line in self.lines.values())
        head = ["| target | cases | refused | time |", "|---|---:|---:|---:|"]
        return "\n".join([*head, *rows, f"| all | {total:,} | | {seconds:.1f} s |"])


#: The one report of a test run.
REPORT = Report()


def share(percent: float) -> int:
    """Return how many cases a target gets of all."""
    return max(3, round(TOTAL * percent / 100))


def fuzz(target: str, percent: float, attempt: Callable[[random.Random], bool]) -> None:
    """Try a target's share of the cases, and fail with those that failed.

    Args:
        target: its name in the report.
        percent: its share of all cases.
        attempt: tries one case and fails by an exception; returns whether the input was refused, as it may be.
    """
    numbers = [int(ONLY)] if ONLY else range(share(percent))
    failures: list[Exception] = []
    for number in numbers:
        started = time.monotonic()
        try:
            refused = attempt(random.Random(f"{target} {number}"))  # noqa: S311 - to be the same again
            assert time.monotonic() - started < HANG_S, "it took too long"
        except (Exception, pytest.fail.Exception) as exc:
            exc.add_note(f"This was case {number} of {target}; PENSTOCK_FUZZ_ONLY={number} tries it alone.")
            if not isinstance(exc, Exception):  # a time limit of pytest
                raise
            failures.append(exc)
            if len(failures) == MOST_FAILURES:
                break
        else:
            REPORT.add(target, refused=refused, seconds=time.monotonic() - started)
    if failures:
        raise ExceptionGroup(f"{len(failures)} hostile cases of {target}", failures)
