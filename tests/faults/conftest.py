"""Fixtures of the fault tests, and the table that they end with.

Each fault is written once. ``make test`` injects it a few times; ``make faults`` sets FAULTS=long and injects it often,
or for long.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.acceptance.conftest import Shell, texts
from tests.faults.report import REPORT
from tests.faults.rig import Rig, open_rig

IS_LONG = os.environ.get("FAULTS") == "long"

#: Rows of the longest job in these tests.
MOST_ROWS = 20_000 if IS_LONG else 2_000

T = TypeVar("T")


def by_size(short: T, long: T) -> T:
    """Choose between the two sizes of a fault."""
    return long if IS_LONG else short


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table for docs/reliability.md after a long run."""
    if IS_LONG and REPORT.lines:
        terminalreporter.section("faults")
        terminalreporter.write_line(REPORT.table())


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """The result of a run without faults, over as many rows as any test needs."""
    folder = tmp_path_factory.mktemp("reference")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    shell = Shell(folder, {**inherited, "XDG_STATE_HOME": str(folder / "state")})
    shell.write("corpus.txt", texts(MOST_ROWS))
    shell.run("encode", "corpus.txt", "--model", "fake", "--workers", 1, "--out", "expected.parquet")
    table = pq.read_table(folder / "expected.parquet")
    assert table["row"].to_pylist() == list(range(MOST_ROWS))
    return table


@pytest.fixture(scope="module")
def module_rig(expected: pa.Table) -> Iterator[Rig]:
    """A cluster with a store in a folder, for all tests of a module."""
    folder = Path(tempfile.mkdtemp(prefix="pst-"))  # short: socket paths stop at 108 bytes
    with open_rig(folder, expected, (folder / "store").as_uri(), {}) as rig:
        yield rig
    shutil.rmtree(folder)


@pytest.fixture
def rig(module_rig: Rig) -> Iterator[Rig]:
    """The module's cluster, with nothing broken yet; what was broken is mended afterwards."""
    yield module_rig
    module_rig.proxy.clear()
    print(module_rig.say())  # noqa: T201 - shown if the test failed
