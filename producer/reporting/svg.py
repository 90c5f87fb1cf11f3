"""Matplotlib's figures as SVG that stands inside a page: text stays text, colours are those of the page."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Colours by what they mean. Each stands for a variable of the page's style sheet, which has a light and a dark value.
COLOURS = {
    "ink": "#010101",
    "faint": "#020202",
    "model": "#030303",
    "held": "#040404",
    "other": "#050505",
    "warn": "#060606",
    "track": "#070707",
}
#: Inches of a figure's width; at 72 points each, one point is a pixel of a wide page.
WIDTH_IN = 10.5

#: How matplotlib writes, for the time of one figure. Text is text, so it is no formula either.
_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "text.color": COLOURS["ink"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.edgecolor": COLOURS["faint"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": COLOURS["faint"],
    "grid.linewidth": 0.5,
    "grid.alpha": 0.5,
    "xtick.color": COLOURS["faint"],
    "xtick.labelcolor": COLOURS["ink"],
    "ytick.color": COLOURS["faint"],
    "ytick.labelcolor": COLOURS["ink"],
    "legend.frameon": False,
    "legend.fontsize": 10,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "figure.constrained_layout.wspace": 0.06,
    "path.simplify": False,
}


@contextmanager
def drawing(height_in: float) -> Iterator[Figure]:
    """Yield an empty figure as wide as the page; draw on it within the block, and save it there."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        yield Figure(figsize=(WIDTH_IN, height_in), layout="constrained")


def to_svg(figure: Figure, name: str, title: str) -> Markup:
    """Return a figure as an element of a page.

    Args:
        figure: as ``drawing`` gave it.
        name: of the figure on its page, so that no two elements of the page have the same id.
        title: what it shows, for those who do not see it.
    """
    import matplotlib as mpl

    sink = io.StringIO()
    # The same figure gives the same bytes.
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = sink.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<defs>\s*</defs>|\n\s*", " ", text, flags=re.DOTALL)
    text = re.sub(r'(<svg [^>]*?)width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg [^>]*?)height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px var(--font)", text)
    text = re.sub(r' d="[^"]*"', _shorten, text)
    for variable, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{variable})")
    opening = f'<svg role="img" aria-labelledby="{name}-title" '
    text = text.replace("<svg ", opening, 1)
    return Markup(text.replace(">", f'><title id="{name}-title">{escape(title)}</title>', 1))  # noqa: S704 - escaped


def _shorten(path: re.Match[str]) -> str:
    """Cut the coordinates of a path to tenths of a point."""
    return re.sub(r"(\.\d)\d+", r"\1", path[0])
