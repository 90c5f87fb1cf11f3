"""How a bench is shown: a table for the terminal, one in Markdown, and a plot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from tasks.errors import UsageError
from workers.bench.plan import CEILING, PENSTOCK

NONE = "-"
#: Spaces between columns.
GAP = 2

#: Heading, field of a row, and how it is written.
Column = tuple[str, str, Callable[[Any], str]]


class Layout(NamedTuple):
    """How the figures of an operation are shown.

    Attributes:
        title: returns what was compared on what, in a line.
        columns: those beside the contender's name. Those of GPUs are shown only if one was used.
        speed: the field with the speed, as median, least and most of the rounds.
        unit: of the speed.
    """

    title: Callable[[dict[str, Any]], str]
    columns: tuple[Column, ...]
    speed: str
    unit: str


def with_spread(shown: Callable[[float], str]) -> Callable[[Any], str]:
    """Return what writes median, least and most, if they are not the same."""

    def show(value: dict[str, float]) -> str:
        if value["least"] == value["most"]:
            return shown(value["median"])
        return f"{shown(value['median'])} ({shown(value['least'])}-{shown(value['most'])})"

    return show


def whole(value: float) -> str:
    """Write a number without decimals."""
    return f"{value:,.0f}"


def percent(value: float) -> str:
    """Write a share."""
    return f"{value:.0%}"


def megabytes(value: int) -> str:
    """Write bytes."""
    return f"{value / 10**6:,.0f} MB"


def seconds(value: float) -> str:
    """Write a short duration."""
    return f"{value:.1f} s"


def duration(value: float) -> str:
    """Write a duration, long ones in minutes."""
    return seconds(value) if value < 120 else f"{value / 60:.1f} min"  # noqa: PLR2004 - two minutes


def label(row: dict[str, Any]) -> str:
    """Return what a contender is called, with the kernel of a ceiling, and how often it failed beside its figures."""
    kernel = f", {row['kernel']}" if row.get("kernel") else ""
    n_failed, n_rounds = len(row.get("errors", ())), len(row.get("rounds", ()))
    failed = f" ({n_failed} of {n_rounds} failed)" if 0 < n_failed < n_rounds else ""
    return f"{row['label']}{kernel}{failed}"


def cells(result: dict[str, Any], layout: Layout) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of the table. One that failed each time has its error instead of figures."""
    rows = _rows(result)
    columns = [
        column
        for column in layout.columns
        if column[1] != "gpu_peak_bytes" or any(row.get("gpu_peak_bytes") for row in rows)
    ]
    lines = []
    for row in rows:
        if row[layout.speed] is None:
            lines.append([label(row), f"failed: {row['errors'][-1]}", *[""] * (len(columns) - 1)])
        else:
            figures = [NONE if row.get(name) is None else show(row[name]) for _, name, show in columns]
            lines.append([label(row), *figures])
    return ["contender", *(heading for heading, _, _ in columns)], lines


def _rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the contenders, and below them what somebody else published."""
    return [*result["contenders"], *result.get("published", {}).get("rows", ())]


def table(result: dict[str, Any], layout: Layout, width: int) -> Table:
    """Return the table for a terminal of so many columns. Names in it are text, never markup."""
    headings, lines = cells(result, layout)
    found = Table(
        title=Text(layout.title(result), style="table.title"),
        title_justify="left",
        caption=Text(_caption(result), style="table.caption"),
        caption_justify="left",
        box=None,
        padding=(0, GAP, 0, 0),
        pad_edge=False,
    )
    widths = _widths([headings, *lines], width - GAP * (len(headings) - 1))
    for i, heading in enumerate(headings):
        found.add_column(heading, justify="right" if i else "left", overflow="fold", width=widths[i])
    for row, line in zip(_rows(result), lines, strict=True):
        found.add_row(*map(Text, line), style="bold" if row["name"] == PENSTOCK else None)
    return found


def _widths(lines: list[list[str]], room: int) -> list[int | None]:
    """Return the width of each column if lines must be broken between words; None where Rich does well by itself.

    Rich breaks names and numbers where they stand, and half a number looks like another one. With the reasons of those
    that failed, there is more text than figures, and it does.
    """
    columns = list(zip(*lines, strict=True))
    whole = [max(map(len, column)) for column in columns]
    widths = [max(len(word) for text in column for word in text.split()) for column in columns]
    spare = room - sum(widths)
    if sum(whole) <= room or spare < 0 or "" in columns[-1]:
        return [None] * len(widths)
    for i in [*range(1, len(widths)), 0]:  # the contenders' names are broken first
        more = min(whole[i] - widths[i], spare)
        widths[i], spare = widths[i] + more, spare - more
    return list(widths)


def markdown(result: dict[str, Any], layout: Layout) -> str:
    """Return the table in Markdown."""
    headings, lines = cells(result, layout)
    rows = [headings, ["---", *["---:"] * (len(headings) - 1)], *lines]
    shown = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{shown}\n\n{_caption(result)}".rstrip()


def _caption(result: dict[str, Any]) -> str:
    """Say where figures come from that are not this machine's."""
    return "{title}. {source}".format(**result["published"]) if "published" in result else ""


def plot(result: dict[str, Any], layout: Layout, path: Path) -> None:
    """Draw the speed of each contender as a bar, with the spread over the rounds, as SVG.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise UsageError("no plot without matplotlib: pip install 'penstock[report]'.") from exc
    rows = [row for row in result["contenders"] if row[layout.speed] and row["name"] != CEILING][::-1]
    speeds = [row[layout.speed] for row in rows]
    medians = [speed["median"] for speed in speeds]
    below = [speed["median"] - speed["least"] for speed in speeds]
    above = [speed["most"] - speed["median"] for speed in speeds]
    with mpl.rc_context({"svg.hashsalt": "penstock", "svg.fonttype": "none", "text.parse_math": False}):
        figure = Figure(figsize=(9, 1.4 + 0.4 * len(rows)), layout="constrained")
        axes = figure.subplots()
        colours = ["#1f6f8b" if row["name"] == PENSTOCK else "#b8c4c8" for row in rows]
        axes.barh([label(row) for row in rows], medians, xerr=[below, above], color=colours, ecolor="#444444")
        for row in result["contenders"]:
            if row["name"] == CEILING and row[layout.speed]:
                axes.axvline(row[layout.speed]["median"], color="#a03030", linestyle="--", linewidth=1)
                axes.annotate(
                    f"matrix products alone{'' if row['precision'] == 'fp32' else ' ' + row['precision']}",
                    (row[layout.speed]["median"], 1),
                    xycoords=("data", "axes fraction"),
                    textcoords="offset points",
                    xytext=(-4, 2),
                    ha="right",
                    color="#a03030",
                    fontsize=8,
                )
        axes.set_xlabel(f"{layout.unit}, median and range of the rounds")
        axes.set_title(layout.title(result), fontsize=8, loc="left", pad=16)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, format="svg", metadata={"Date": None})
