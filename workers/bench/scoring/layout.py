"""How the figures of ``penstock bench score`` are shown: as the article has them, and its own below."""

from __future__ import annotations

from typing import Any

from workers.bench.showing import Layout, duration, megabytes, percent


def title(result: dict[str, Any]) -> str:
    """Return what was compared on what, in a line."""
    pairs, machine = result["pairs"], result["machine"]
    queries = f"{pairs['queries']:,} {'query' if pairs['queries'] == 1 else 'queries'}"
    return (
        f"{pairs['name']}: {queries}, {pairs['pairs']:,} documents to score, {pairs['mean_tokens']:.0f} tokens each; "
        f"{result['model']} ({result['kind']}); {machine['cores']} cores, {', '.join(machine['devices'])}"
    )


def _speed(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"  # noqa: PLR2004 - three digits


def _ratio(value: dict[str, float]) -> str:
    return f"{value['median']:.2f}"


#: Ranges are in the JSON file: with them, the article's table would not fit into a terminal of 80 columns.
LAYOUT = Layout(
    title=title,
    columns=(
        ("total time", "seconds", lambda value: duration(value["median"])),
        ("docs/s", "documents_per_s", lambda value: _speed(value["median"])),
        ("device use", "device_use", percent),
        ("speed-up", "speedup", _ratio),
        ("ratio", "ratio", _ratio),
        ("peak memory", "peak_bytes", megabytes),
        ("GPU memory", "gpu_peak_bytes", megabytes),
        ("differs by", "largest_difference", lambda value: f"{value:.1e}"),
        ("equal ranks", "equal_ranks", percent),
    ),
    speed="documents_per_s",
    unit="documents/s",
)
