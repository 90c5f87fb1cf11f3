"""What ended attempts teach about a chunk."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.journal import GROUPS, STRIKES, Journal


def rows_of(groups):
    """Return the rows of groups, in the order in which they go to work."""
    return [row for first, stop in groups for row in range(first, stop)]


def test_nothing_learned_reads_as_an_empty_journal():
    """So begins every chunk."""
    assert Journal.read("", "", "") == Journal()


def test_what_is_written_is_read_again():
    """But for how the last attempt ended, which the ledger keeps beside it."""
    journal = Journal(suspects=(3, 9), strikes=1, condemned={4: "killed", 7: "it hung"})
    assert Journal.read(journal.dump(), "", "") == journal


def test_the_rows_at_work_when_a_process_ended_are_suspects():
    """They go to work first, alone if they are few."""
    journal = Journal.read("", "32 64", "killed by SIGSEGV")
    assert (journal.suspects, journal.strikes, journal.why) == ((32, 64), 0, "killed by SIGSEGV")
    assert journal.groups(2000)[:32] == [(row, row + 1) for row in range(32, 64)]


def test_a_row_that_ends_two_processes_alone_is_condemned():
    """One such end may be chance."""
    once = Journal.read("", "5 6", "killed by SIGKILL")
    assert (once.strikes, once.condemned) == (1, {})
    twice = Journal.read(once.dump(), "5 6", "killed by SIGSEGV")
    assert (twice.suspects, twice.condemned) == (None, {5: "killed by SIGSEGV"})


def test_another_row_that_ends_a_process_starts_the_count_anew():
    """Strikes belong to a row."""
    once = Journal.read("", "5 6", "killed")
    other = Journal.read(once.dump(), "8 9", "killed")
    assert (other.suspects, other.strikes, other.condemned) == ((8, 9), 1, {})


@given(
    n_rows=st.integers(1, 500),
    suspects=st.none() | st.tuples(st.integers(0, 600), st.integers(0, 600)).map(lambda pair: tuple(sorted(pair))),
    condemned=st.sets(st.integers(0, 499)),
)
def test_every_row_but_the_condemned_goes_to_work_once(n_rows, suspects, condemned):
    """Whatever is suspected."""
    groups = Journal(suspects=suspects, condemned=dict.fromkeys(condemned, "killed")).groups(n_rows)
    assert sorted(rows_of(groups)) == [row for row in range(n_rows) if row not in condemned]
    assert len(groups) <= 3 * GROUPS + len(condemned)


@given(n_rows=st.integers(1, 3000), data=st.data())
@pytest.mark.parametrize("n_killers", [1, 3])
def test_the_rows_that_end_processes_are_found_after_few_of_them(n_rows, n_killers, data):
    """At most one process for the chunk, then for each such row one for its group and two for the row."""
    killers = data.draw(st.sets(st.integers(0, n_rows - 1), min_size=min(n_killers, n_rows), max_size=n_killers))
    journal, ended = Journal(), 1
    while True:
        fatal = next((group for group in journal.groups(n_rows) if killers & set(range(*group))), None)
        if fatal is None:
            break
        journal = Journal.read(journal.dump(), f"{fatal[0]} {fatal[1]}", "killed")
        ended += 1
    assert set(journal.condemned) == killers
    assert ended <= 1 + len(killers) * (1 + STRIKES)
