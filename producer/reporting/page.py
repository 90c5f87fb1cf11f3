"""The page of a report: what a job is, its plots, and their numbers as tables, in one file that needs nothing else."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from producer.columns import LAYOUTS, Layout
from producer.reporting import figures
from producer.reporting.receipts import length_stride
from producer.reporting.tally import SlotTally, Tally
from tasks.options import Options
from tasks.records import JobStatus

#: Rows with an error that the page names.
MOST_ERRORS = 100
#: Slots of the table, and of the plot of stages.
MOST_SLOTS = 1000
#: Characters of an option, such as a prompt.
MOST_OPTION = 200
#: What clocks may differ by before the page says so: a share of the job's time, and seconds.
CLOCK_SHARE, CLOCK_S = 0.05, 2.0


@dataclass(frozen=True)
class Findings:
    """What a report is made of.

    Attributes:
        status: the job when the report began.
        tally: what its receipts come to.
        errors: row number, ids and error of the first rows that failed.
        refusals: which slots refused the job, and why.
        read_at: when the report began, Unix time.
    """

    status: JobStatus
    tally: Tally
    errors: Sequence[dict[str, Any]] = ()
    refusals: dict[str, str] = field(default_factory=dict)
    read_at: float = 0.0


def render(found: Findings) -> str:
    """Return the page."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": _number, "percent": _percent, "seconds": _seconds, "moment": _moment}
    template = environment.from_string(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    return template.render(_context(found))


def _context(found: Findings) -> dict[str, Any]:
    status, tally = found.status, found.tally
    slots = tally.ordered_slots()
    idlest = sorted(slots, key=lambda slot: -(slot.totals.idle_share or 0.0))[: figures.MOST_STAGE_ROWS]
    shown_idle = [slot for slot in slots if slot in idlest]
    layout = LAYOUTS[status.spec.operation]
    return {
        "layout": layout,
        "noun": layout.noun,
        "one": layout.noun.removesuffix("s"),
        "status": status,
        "tally": tally,
        "errors": found.errors,
        "refusals": found.refusals,
        "read_at": found.read_at,
        "version": version("penstock"),
        "options": _options(status.spec.options),
        "slots": slots,
        "slot_rows": slots[:MOST_SLOTS],
        "lane_slots": slots[: figures.MOST_LANES],
        "idle_slots": shown_idle,
        "missing": _missing(status, tally),
        "padding": _padding(tally, layout),
        "length_stride": length_stride(status.chunks),
        "median_s": tally.walls.at(0.5),
        "clocks_differ": status.work_s > 0 and tally.span_s > (1 + CLOCK_SHARE) * status.work_s + CLOCK_S,
        "pictures": _pictures(tally, slots, shown_idle, layout),
    }


def _pictures(tally: Tally, slots: list[SlotTally], idlest: list[SlotTally], layout: Layout) -> dict[str, Any]:
    """Return the plots of which there is something to draw."""
    pictures: dict[str, Any] = dict.fromkeys(("throughput", "lanes", "walls", "stages", "lengths"))
    if tally.span_s:
        timed = [slot for slot in slots if slot.last_s >= slot.first_s]
        pictures |= {
            "throughput": figures.throughput(tally),
            "lanes": figures.lanes(tally, timed[: figures.MOST_LANES]),
            "walls": figures.walls(tally),
        }
        if tally.totals.known_s:
            pictures["stages"] = figures.stages(tally, idlest)
    if tally.lengths.n_rows:
        pictures["lengths"] = figures.lengths(tally, layout.noun)
    return pictures


def _missing(status: JobStatus, tally: Tally) -> list[tuple[int, int]]:
    """Return the first ranges of chunks without a result, each with its last chunk."""
    rest = [(tally.next_chunk, status.chunks - 1)] if tally.next_chunk < status.chunks else []
    return [*tally.gaps, *rest]


def _padding(tally: Tally, layout: Layout) -> str:
    """Say how much of what went through the model was padding, as far as that is known."""
    if tally.padding_share is None:
        hiding = f"{layout.noun} that failed, or whose {layout.value} was at hand, hide it"
        return f"How much of that was padding is not known: {hiding}."
    if tally.computed.chunks == tally.totals.chunks:
        return f"{_percent(tally.padding_share)} of what went through was padding."
    share, chunks = _percent(tally.padding_share), _number(tally.computed.chunks)
    return (
        f"In the {chunks} chunks of which all {layout.noun} went through, {share} was padding; of the others it is not "
        "known."
    )


def _options(options: Options) -> dict[str, str]:
    """Return the options that are not the defaults, of a template its name."""
    given = options.model_dump(mode="json", exclude_defaults=True)
    given = {name: value["name"] if isinstance(value, dict) else value for name, value in given.items()}
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in given.items()}
    return {name: text if len(text) <= MOST_OPTION else f"{text[:MOST_OPTION]}…" for name, text in texts.items()}


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _percent(share: float | None) -> str:
    return "not known" if share is None else f"{share:.1%}"


def _seconds(value: float) -> str:
    """Write seconds with three digits at least, and from two minutes on as hours, minutes and seconds."""
    if value < 120:  # noqa: PLR2004 - two minutes
        return f"{value:.3g} s" if value < 100 else f"{value:.0f} s"  # noqa: PLR2004 - digits
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def _moment(unix_s: float) -> str:
    return f"{datetime.datetime.fromtimestamp(unix_s, datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"
