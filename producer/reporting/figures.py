"""The plots of a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from producer.reporting.svg import COLOURS, drawing, to_svg
from producer.reporting.tally import SlotTally, Tally

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Lanes that are drawn, and chunks that are drawn one by one in all of them together.
MOST_LANES = 200
MOST_BARS = 4000
#: Lanes up to which each has its own name beside it.
MOST_NAMES = 40
#: Slots of which the stages are drawn.
MOST_STAGE_ROWS = 24
#: Characters of a slot's name beside its lane; its end tells it from its neighbours.
NAME_LENGTH = 34
#: A histogram whose highest bar is so many times its lowest is drawn with a logarithmic scale.
LOGARITHMIC = 100
#: Units of the time axis: from how many seconds on.
UNITS = ((2 * 86400.0, 86400.0, "days"), (2 * 3600.0, 3600.0, "hours"), (300.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))


def throughput(tally: Tally) -> Markup:
    """Draw tokens per second over time."""
    edges, rates = tally.tokens.per_second(tally.first_s, tally.last_s)
    mean = tally.totals.tokens / tally.span_s if tally.span_s else 0.0
    with drawing(2.9) as figure:
        axes = figure.add_subplot()
        _time_axis(axes, tally)
        axes.stairs(rates, edges - tally.first_s, fill=True, color=COLOURS["held"])
        axes.stairs(rates, edges - tally.first_s, color=COLOURS["model"], linewidth=1.2)
        axes.axhline(mean, color=COLOURS["warn"], linewidth=1.2, linestyle="--", label=f"mean {mean:,.0f}")
        axes.set_ylabel("tokens per second")
        axes.set_ylim(0, 1.15 * max(rates.max(), mean, 1.0))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        figure.legend(loc="outside upper right")
        return to_svg(figure, "throughput", f"Tokens per second over time; {mean:,.0f} in the mean.")


def lanes(tally: Tally, slots: Sequence[SlotTally]) -> Markup:
    """Draw a lane per slot: the time that it had chunks, and in that the time that the model computed."""
    each_in = min(0.34, max(0.085, 8.0 / len(slots)))
    with drawing(0.9 + each_in * len(slots)) as figure:
        axes = figure.add_subplot()
        _time_axis(axes, tally)
        for place, slot in enumerate(slots):
            axes.axhspan(-place - 0.4, -place + 0.4, facecolor=COLOURS["track"], linewidth=0)
            edges, held, model = lane_steps(slot, most_spans=max(20, MOST_BARS // len(slots)))
            _lane(axes, edges - tally.first_s, place, held, "held")
            _lane(axes, edges - tally.first_s, place, model, "model")
        _name_lanes(axes, slots)
        axes.grid(visible=False)
        _key(
            axes,
            [("model", "in the model"), ("held", "with a chunk, not in the model"), ("track", "without a chunk")],
        )
        return to_svg(figure, "lanes", f"{len(slots)} slots over time: when each had chunks and used the model.")


def lane_steps(slot: SlotTally, *, most_spans: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the edges of a lane's steps (n + 1,), the share of each with a chunk (n,), and in the model (n,).

    A slot with few chunks has two steps a chunk: the chunk, and the gap behind it. A chunk that was claimed while the
    one before was in work begins where that ended.
    """
    if slot.spans is None or len(slot.spans) > most_spans:
        edges, held = slot.held.per_second(slot.first_s, slot.last_s)
        _, model = slot.model.per_second(slot.first_s, slot.last_s)
        return edges, np.clip(held, 0, 1), np.clip(model, 0, 1)
    edges_of, held_of, model_of = [], [], []
    end_s = slot.first_s
    for span in sorted(slot.spans, key=lambda span: span.start_s):
        start_s, end_s = max(span.start_s, end_s), max(span.end_s, end_s)
        length_s = max(end_s - start_s, 1e-9)
        edges_of += [start_s, end_s]
        held_of += [1.0, 0.0]
        model_of += [min(1.0, span.model_s / length_s), 0.0]
    return np.array(edges_of), np.array(held_of[:-1]), np.array(model_of[:-1])


def stages(tally: Tally, slots: Sequence[SlotTally]) -> Markup:
    """Draw the share of each slot's time in the model and without it, and what reading and tokenising took."""
    rows = [("all slots", tally.totals), *((_short(slot.name), slot.totals) for slot in slots)]
    places = -np.arange(len(rows), dtype=float)
    known = np.maximum([row.known_s for _, row in rows], 1e-9)
    with drawing(0.9 + 0.27 * len(rows)) as figure:
        main, reading, tokenising = figure.subplots(1, 3, sharey=True, width_ratios=[2.4, 1, 1])
        model, idle = (np.array([getattr(row, name) for _, row in rows]) / known for name in ("model_s", "idle_s"))
        main.barh(places, model, 0.7, color=COLOURS["model"])
        main.barh(places, idle, 0.7, left=model, color=COLOURS["warn"])
        for place, share in zip(places, idle, strict=True):
            main.annotate(f"{share:.1%}", (1.0, place), (4, 0), textcoords="offset points", va="center")
        most = 0.0
        for axes, name in ((reading, "read_s"), (tokenising, "tokenise_s")):
            shares = np.array([getattr(row, name) for _, row in rows]) / known
            axes.barh(places, shares, 0.7, color=COLOURS["other"])
            most = max(most, shares.max())
        for axes in (reading, tokenising):
            axes.set_xlim(0, 1.1 * max(most, 0.01))
        main.set_xlim(0, 1.0)
        main.set_yticks(places, [name for name, _ in rows])
        for axes, title in (
            (main, "in the model, and without it (with its figure)"),
            (reading, "reading"),
            (tokenising, "tokenising"),
        ):
            axes.set_title(title, loc="left", fontsize=10.5)
            axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
            axes.grid(visible=False)
            axes.tick_params(axis="y", length=0)
            axes.locator_params(axis="x", nbins=5 if axes is main else 3)
        return to_svg(figure, "stages", "Share of the slots' time in the model, without it, reading and tokenising.")


def lengths(tally: Tally, noun: str) -> Markup:
    """Draw how many rows have how many tokens; noun is what rows are called."""
    firsts, rows, truncated = tally.lengths.counts()
    width = tally.lengths.width
    with drawing(2.9) as figure:
        axes = figure.add_subplot()
        axes.bar(firsts, rows, width, align="edge", color=COLOURS["model"], label=noun)
        if truncated.any():
            axes.bar(firsts, truncated, width, align="edge", color=COLOURS["warn"], label=f"truncated {noun}")
            axes.axvline(tally.lengths.limit, color=COLOURS["warn"], linestyle="--", linewidth=1.2)
        used = rows[rows > 0]
        if used.max() > LOGARITHMIC * used.min():
            axes.set_yscale("log")
            axes.set_ylim(bottom=0.7)
        axes.set_xlim(0, firsts[-1] + width)
        axes.set_xlabel(f"tokens of a {noun.removesuffix('s')}, as far as the model takes them")
        axes.set_ylabel(noun)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        figure.legend(loc="outside upper right", ncols=2)
        return to_svg(
            figure, "lengths", f"{noun.capitalize()} by their number of tokens, {tally.lengths.most:,} at most."
        )


def walls(tally: Tally) -> Markup:
    """Draw how many chunks took how long."""
    from matplotlib.ticker import LogLocator, NullFormatter

    edges, counts = tally.walls.counts(60)
    with drawing(2.5) as figure:
        axes = figure.add_subplot()
        axes.stairs(counts, edges, fill=True, color=COLOURS["model"])
        for share, name, style in ((0.5, "median", "-"), (0.99, "99 %", "--")):
            value = tally.walls.at(share)
            axes.axvline(value, color=COLOURS["warn"], linestyle=style, linewidth=1.2, label=f"{name} {value:.3g} s")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        if counts.max() > LOGARITHMIC:
            axes.set_yscale("log")
            axes.set_ylim(bottom=0.7)
        axes.set_xlabel("seconds of a chunk, from its claim until its result was ready")
        axes.set_ylabel("chunks")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        figure.legend(loc="outside upper right", ncols=2)
        return to_svg(figure, "walls", f"Chunks by their seconds; the median is {tally.walls.at(0.5):.3g} s.")


def _time_axis(axes: Axes, tally: Tally) -> None:
    """Count time from the first claim, in a unit that suits the whole."""
    from matplotlib.ticker import MaxNLocator

    span_s = max(tally.span_s, 1e-3)
    _, unit_s, name = next(unit for unit in UNITS if span_s >= unit[0])
    ticks = np.asarray(MaxNLocator(9, steps=[1, 2, 3, 5, 6, 10]).tick_values(0, span_s / unit_s))
    ticks = ticks[(ticks >= 0) & (ticks <= span_s / unit_s)]
    axes.set_xticks(ticks * unit_s, [f"{tick:g}" for tick in ticks.round(9)])
    axes.set_xlim(0, span_s)
    axes.set_xlabel(f"{name} since the first claim")


def _lane(axes: Axes, edges: np.ndarray, place: int, shares: np.ndarray, colour: str) -> None:
    bottom = -place - 0.4
    axes.stairs(bottom + 0.8 * shares, edges, baseline=bottom, fill=True, facecolor=COLOURS[colour], linewidth=0)


def _name_lanes(axes: Axes, slots: Sequence[SlotTally]) -> None:
    """Write the slots' names beside their lanes, or the nodes' where there are many, and part nodes by lines."""
    nodes = [slot.node for slot in slots]
    firsts = [place for place, node in enumerate(nodes) if not place or node != nodes[place - 1]]
    named = range(len(slots)) if len(slots) <= MOST_NAMES else firsts[:: -(-len(firsts) // MOST_NAMES)]
    names = [slots[place].name if len(slots) <= MOST_NAMES else nodes[place] for place in named]
    axes.set_yticks([-place for place in named], [_short(name) for name in names])
    axes.set_ylim(-len(slots) + 0.4, 0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    for place in firsts[1:]:
        axes.axhline(0.5 - place, color=COLOURS["faint"], linewidth=0.6)


def _key(axes: Axes, entries: Sequence[tuple[str, str]]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=COLOURS[colour], label=label) for colour, label in entries]
    axes.figure.legend(handles=handles, loc="outside upper right", ncols=len(entries))


def _short(name: str) -> str:
    """Return a name that fits beside a plot, in characters that every font has."""
    name = name.encode("ascii", "replace").decode()
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH // 2 - 2]}...{name[-NAME_LENGTH // 2 + 1 :]}"
