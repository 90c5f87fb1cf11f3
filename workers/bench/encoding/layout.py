"""How the figures of ``penstock bench encode`` are shown."""

from __future__ import annotations

from typing import Any

from workers.bench.showing import Layout, megabytes, percent, seconds, whole, with_spread


def title(result: dict[str, Any]) -> str:
    """Return what was compared on what, in a line."""
    corpus, machine = result["corpus"], result["machine"]
    return (
        f"{corpus['name']}: {corpus['rows']:,} rows, {corpus['tokens']:,} tokens, {corpus['mean_tokens']:.0f} a row; "
        f"{result['model']}; {machine['cores']} cores, {', '.join(machine['devices'])}"
    )


LAYOUT = Layout(
    title=title,
    columns=(
        ("rows/s", "rows_per_s", whole),
        ("tokens/s", "tokens_per_s", with_spread(whole)),
        ("ratio", "ratio", with_spread(lambda value: f"{value:.2f}")),
        ("of ceiling", "of_ceiling", lambda value: percent(value["median"])),
        ("device use", "device_use", percent),
        ("peak memory", "peak_bytes", megabytes),
        ("GPU memory", "gpu_peak_bytes", megabytes),
        ("padding", "padding", percent),
        ("whole command", "command_s", seconds),
    ),
    speed="tokens_per_s",
    unit="tokens/s",
)
