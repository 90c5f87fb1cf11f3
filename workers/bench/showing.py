"""How a bench is shown: a table for the terminal, one in Markdown, and a plot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from tasks.errors import UsageError
from workers.bench.plan import CEILING, PENSTOCK

NONE = "-"


def _spread(shown: Callable[[float], str]) -> Callable[[Any], str]:
    def show(value: dict[str, float]) -> str:
        if value["least"] == value["most"]:
            return shown(value["median"])
        return f"{shown(value['median'])} ({shown(value['least'])}-{shown(value['most'])})"

    return show


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _percent(value: float) -> str:
    return f"{value:.0%}"


def _megabytes(value: int) -> str:
    return f"{value / 10**6:,.0f} MB"


#: Heading, field of a row, and how it is written.
COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("contender", "label", str),
    ("rows/s", "rows_per_s", _whole),
    ("tokens/s", "tokens_per_s", _spread(_whole)),
    ("ratio", "ratio", _spread(lambda value: f"{value:.2f}")),
    ("of ceiling", "of_ceiling", lambda value: _percent(value["median"])),
    ("device use", "device_use", _percent),
    ("peak memory", "peak_bytes", _megabytes),
    ("GPU memory", "gpu_peak_bytes", _megabytes),
    ("padding", "padding", _percent),
    ("whole command", "command_s", lambda value: f"{value:.1f} s"),
)


def label(row: dict[str, Any]) -> str:
    """Return what a contender is called, with the kernel of a ceiling, and how often it failed beside its figures."""
    kernel = f", {row['kernel']}" if row["kernel"] else ""
    n_failed, n_rounds = len(row["errors"]), len(row["rounds"])
    failed = f" ({n_failed} of {n_rounds} failed)" if 0 < n_failed < n_rounds else ""
    return f"{row['label']}{kernel}{failed}"


def cells(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of the table. One that failed each time has its error instead of figures."""
    rows = result["contenders"]
    columns = [
        column for column in COLUMNS if column[1] != "gpu_peak_bytes" or any(row["gpu_peak_bytes"] for row in rows)
    ]
    lines = []
    for row in rows:
        if row["tokens_per_s"] is None:
            lines.append([label(row), f"failed: {row['errors'][-1]}", *[""] * (len(columns) - 2)])
        else:
            figures = [NONE if row[name] is None else show(row[name]) for _, name, show in columns[1:]]
            lines.append([label(row), *figures])
    return [heading for heading, _, _ in columns], lines


def title(result: dict[str, Any]) -> str:
    """Return what was compared on what, in a line."""
    corpus, machine = result["corpus"], result["machine"]
    return (
        f"{corpus['name']}: {corpus['rows']:,} rows, {corpus['tokens']:,} tokens, {corpus['mean_tokens']:.0f} a row; "
        f"{result['model']}; {machine['cores']} cores, {', '.join(machine['devices'])}"
    )


def table(result: dict[str, Any]) -> Table:
    """Return the table for a terminal. Names in it are text, never markup."""
    headings, lines = cells(result)
    found = Table(title=Text(title(result), style="table.title"), title_justify="left", box=None, pad_edge=False)
    for i, heading in enumerate(headings):
        found.add_column(heading, justify="right" if i else "left", overflow="fold")
    for row, line in zip(result["contenders"], lines, strict=True):
        found.add_row(*map(Text, line), style="bold" if row["name"] == PENSTOCK else None)
    return found


def markdown(result: dict[str, Any]) -> str:
    """Return the table in Markdown."""
    headings, lines = cells(result)
    rows = [headings, ["---", *["---:"] * (len(headings) - 1)], *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw tokens a second of each contender as a bar, with the spread over the rounds, as SVG.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise UsageError("no plot without matplotlib: pip install 'penstock[report]'.") from exc
    rows = [row for row in result["contenders"] if row["tokens_per_s"] and row["name"] != CEILING][::-1]
    medians = [row["tokens_per_s"]["median"] for row in rows]
    below = [row["tokens_per_s"]["median"] - row["tokens_per_s"]["least"] for row in rows]
    above = [row["tokens_per_s"]["most"] - row["tokens_per_s"]["median"] for row in rows]
    with mpl.rc_context({"svg.hashsalt": "penstock", "svg.fonttype": "none", "text.parse_math": False}):
        figure = Figure(figsize=(9, 1.4 + 0.4 * len(rows)), layout="constrained")
        axes = figure.subplots()
        colours = ["#1f6f8b" if row["name"] == PENSTOCK else "#b8c4c8" for row in rows]
        axes.barh([label(row) for row in rows], medians, xerr=[below, above], color=colours, ecolor="#444444")
        for row in result["contenders"]:
            if row["name"] == CEILING and row["tokens_per_s"]:
                axes.axvline(row["tokens_per_s"]["median"], color="#a03030", linestyle="--", linewidth=1)
                axes.annotate(
                    f"matrix products alone{'' if row['precision'] == 'fp32' else ' ' + row['precision']}",
                    (row["tokens_per_s"]["median"], 1),
                    xycoords=("data", "axes fraction"),
                    textcoords="offset points",
                    xytext=(-4, 2),
                    ha="right",
                    color="#a03030",
                    fontsize=8,
                )
        axes.set_xlabel("tokens/s, median and range of the rounds")
        axes.set_title(title(result), fontsize=8, loc="left", pad=16)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, format="svg", metadata={"Date": None})
