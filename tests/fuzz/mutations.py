"""Valid bytes made invalid, and values that somebody, some day, hands to a program."""

from __future__ import annotations

import random
from collections.abc import Callable

#: What breaks readers: by place it is a byte order mark, half a character, a number that is none, a bracket too many.
INTERESTING = [
    b"\x00",
    b"\x00" * 64,
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\xc0\x80",
    b"\xf4\x90\x80\x80",
    b"\\ud800",
    b"\\udc00\\ud800",
    b"\\u0000",
    b"\r",
    b"\r\n",
    b"\n\r\n\r",
    b"\n" * 50,
    b'"',
    b'""',
    b"'",
    b",",
    b"\t",
    b"\\",
    b"\x1a",
    b"\x1b[2J",
    b"\xe2\x80\xa8",
    b"\x0c\x0b\x1c\x85",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"-0",
    b"9" * 30,
    b"9" * 5000,
    b"[" * 5000,
    b'{"a":' * 5000,
    b'"text":"x",',
    b'"text":null,',
    b'"id":{"a":[]},',
    b"null",
    b"x" * 200_000,
    b"{}",
    b"[]",
    b"{",
    b"}",
    b"\x1f\x8b\x08",
    b"\x28\xb5\x2f\xfd",
    b"PAR1",
    b"ARROW1\x00\x00",
]

#: What a person or a script writes into an option, a variable or a field by mistake or on purpose.
VALUES = [
    "",
    " ",
    "0",
    "-1",
    "1",
    "1e3",
    "1_000",
    "٣",
    "99999999999999999999999",
    "NaN",
    "inf",
    "-inf",
    "true",
    "null",
    "~",
    ".",
    "..",
    "/",
    "//",
    "../../../../etc/passwd",
    "~nobody-there/x",
    "a" * 300,
    "a/" * 200,
    "é" * 130,
    "\udcff\udcfe",
    "\ud83d",
    "a\nb",
    "a\rb",
    "\x1b[31mred\x1b[0m",
    "\x07",
    "[bold]x[/bold]",
    "[/bold]",
    "%s%n",
    "{0}",
    "$HOME",
    "*",
    "**",
    "[",
    "[!",
    "-",
    "--",
    "--help",
    "--overwrite",
    "'",
    '"',
    "\\",
    "💥",
    "\u202egnp.exe",
    "\u0000",
    "://",
    "redis://",
    "file://",
    "s3://",
]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Return the bytes with one or a few mutations."""
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        data = rng.choice(_MUTATIONS)(data, rng)
    return data


def noise(rng: random.Random, most: int = 2000) -> bytes:
    """Return random bytes, of all 256 or of few values."""
    size = rng.randrange(most)
    return rng.randbytes(size) if rng.random() < 0.5 else bytes(rng.choices(b'{}[]":, \n\r\t\\au0\x00\xff', k=size))


def value(rng: random.Random) -> str:
    """Return a text that nobody expects."""
    kind = rng.random()
    if kind < 0.7:
        return rng.choice(VALUES)
    if kind < 0.85:
        return rng.choice(VALUES) + rng.choice(VALUES)
    return "".join(chr(rng.choice([rng.randrange(1, 128), rng.randrange(1, 0xD800)])) for _ in range(rng.randrange(40)))


def _span(data: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.choice([1, 2, 8, 64, len(data)]))


def _flip(data: bytes, rng: random.Random) -> bytes:
    if not data:
        return data
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def _cut_off(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _drop(data: bytes, rng: random.Random) -> bytes:
    start, end = _span(data, rng)
    return data[:start] + data[end:]


def _double(data: bytes, rng: random.Random) -> bytes:
    start, end = _span(data, rng)
    return data[:end] + data[start:]


def _insert(data: bytes, rng: random.Random) -> bytes:
    at = rng.choice([0, len(data), rng.randrange(len(data) + 1)])
    return data[:at] + rng.choice(INTERESTING) + data[at:]


def _overwrite(data: bytes, rng: random.Random) -> bytes:
    start, end = _span(data, rng)
    size = end - start
    return data[:start] + rng.choice([bytes(size), b"\xff" * size, rng.randbytes(size)]) + data[end:]


def _mix_lines(data: bytes, rng: random.Random) -> bytes:
    lines = data.split(b"\n")
    rng.shuffle(lines)
    return rng.choice([b"\n", b"\r\n", b"\r", b"\n\n"]).join(lines)


_MUTATIONS: list[Callable[[bytes, random.Random], bytes]] = [
    _flip,
    _flip,
    _cut_off,
    _drop,
    _double,
    _insert,
    _insert,
    _overwrite,
    _mix_lines,
]
