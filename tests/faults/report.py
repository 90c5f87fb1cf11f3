"""What the fault tests did, as the table that docs/reliability.md shows."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from tests.faults.accounting import Tally

HEAD = "| fault | injected | rows | lost | doubled | altered | recovery, median | longest |"


@dataclass
class Line:
    """One kind of fault."""

    injected: int = 0
    rows: int = 0
    tally: Tally = field(default_factory=Tally)
    recoveries_s: list[float] = field(default_factory=list)


class Report:
    """Faults by their name, in the order in which they were first injected, and what else was measured."""

    def __init__(self) -> None:
        self.lines: dict[str, Line] = {}
        self.notes: list[str] = []

    def add(
        self, fault: str, tally: Tally, *, rows: int, injected: int = 1, recoveries_s: list[float] | None = None
    ) -> None:
        """Add to a line what one test did."""
        line = self.lines.setdefault(fault, Line())
        line.injected += injected
        line.rows += rows
        line.tally += tally
        line.recoveries_s += recoveries_s or []

    def table(self) -> str:
        """Return all lines as a Markdown table."""
        rule = "|".join(["", "---", *["---:"] * (HEAD.count("|") - 2), ""])
        rows = [_row(fault, line) for fault, line in self.lines.items()]
        return "\n".join([HEAD, rule, *rows, "", *self.notes])


def _row(fault: str, line: Line) -> str:
    times = line.recoveries_s
    median, longest = (f"{statistics.median(times):.1f} s", f"{max(times):.1f} s") if times else ("", "")
    tally = line.tally
    cells = [fault, line.injected, f"{line.rows:,}", tally.lost, tally.doubled, tally.altered, median, longest]
    return f"| {' | '.join(map(str, cells))} |"


#: The one report of a test run.
REPORT = Report()
