"""Rows that break what they meet: each becomes an error row, and all others have their vectors."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tests.acceptance.conftest import texts
from tests.faults.accounting import FLAWLESS, compare
from tests.faults.conftest import by_size
from tests.faults.report import REPORT
from tests.faults.rig import Rig, now

MODEL = "fake:faults=1"
#: Poison, and what the error of its row says.
POISON = {
    "!raise": "RuntimeError",
    "!memory": "MemoryError",
    "!exit": "exit status 3",
    "!segfault": "SIGSEGV",
    "!kill": "SIGKILL",
    "!hang": "time limit",
    "!freeze": "fell silent",
}


@pytest.fixture
def poisoned(rig: Rig) -> Iterator[Rig]:
    """A node that notices after seconds what takes minutes elsewhere."""
    short = {"PENSTOCK_STALL_S": "1", "PENSTOCK_LEASE_S": "1.5", "PENSTOCK_HEARTBEAT_S": "0.3"}
    rig.stop_workers()
    rig.start_worker(MODEL, slots=3, **short)
    yield rig
    rig.stop_workers()


def test_each_poison_row_gets_an_error_and_costs_no_other_row(poisoned: Rig) -> None:
    """Rows that raise, exhaust memory, exit, crash, are killed, hang and freeze, each in a chunk with good rows."""
    rig = poisoned
    corpus = texts(by_size(80, 2000))
    rows = {poison: 3 + i * len(corpus) // len(POISON) for i, poison in enumerate(POISON)}
    for poison, row in rows.items():
        corpus[row] = f"{poison} please"
    since = now()
    job = rig.client.encode(corpus, model=MODEL).id
    found = rig.finish(job)
    recovery_s = now() - since
    assert found["row"].to_pylist() == list(range(len(corpus)))
    errors = {row: error for row, error in enumerate(found["error"].to_pylist()) if error}
    assert errors.keys() == set(rows.values())
    for poison, row in rows.items():
        assert POISON[poison] in errors[row]
        assert poison not in errors[row]
    shown = {entry["row"]: entry["error"] for entry in rig.shell.json("status", job)["errors"]}
    assert shown == errors
    is_good = pc.is_null(found["error"])
    expected = rig.expected.slice(0, len(corpus)).filter(is_good)
    tally = compare(found.filter(is_good), expected)
    REPORT.add("poison rows", tally, rows=len(corpus), injected=len(POISON), recoveries_s=[recovery_s])
    assert tally == FLAWLESS


def test_two_poison_rows_in_one_chunk_are_both_found(poisoned: Rig) -> None:
    """The second is found after the first is known."""
    rig = poisoned
    corpus = texts(30)
    corpus[12], corpus[17] = "!segfault", "!kill"
    found: pa.Table = rig.finish(rig.client.encode(corpus, model=MODEL).id)
    errors = {row: error for row, error in enumerate(found["error"].to_pylist()) if error}
    assert errors.keys() == {12, 17}
    assert ("SIGSEGV" in errors[12], "SIGKILL" in errors[17]) == (True, True)
