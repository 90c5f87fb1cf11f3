"""What is said to a person: one line on stderr, with nothing in it that a terminal obeys."""

from __future__ import annotations

from rich.console import Console


def say(line: str) -> None:
    """Print a line; what would move the cursor or hide text, in a file's name say, is escaped."""
    visible = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    Console(stderr=True).print(f"penstock: {visible}", highlight=False, markup=False, soft_wrap=True)
