"""Work that overlaps: the next item is made ready in a thread while this one is worked on, and never more than one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def one_ahead(items: Iterable[T], prepare: Callable[[T], R]) -> Iterator[R]:
    """Yield what ``prepare`` makes of each item, in order; the next one is under way while the caller has this one.

    What ``prepare`` raises is raised where its result would have come.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        waiting = None
        for item in items:
            following = pool.submit(prepare, item)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()
