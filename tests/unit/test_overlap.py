"""One item is made ready while another is worked on."""

import threading

import pytest

from workers.overlap import one_ahead


def test_results_come_in_order():
    """Each item once."""
    assert list(one_ahead(range(5), lambda item: item * 10)) == [0, 10, 20, 30, 40]
    assert list(one_ahead([], str)) == []


def test_the_next_item_is_prepared_while_this_one_is_worked_on():
    """The consumer waits for the preparation of the next one, which would never end if it were not under way."""
    begun = [threading.Event() for _ in range(3)]

    def prepare(item):
        begun[item].set()
        return item

    seen = one_ahead(range(3), prepare)
    assert next(seen) == 0
    assert begun[1].wait(10)
    assert not begun[2].is_set()
    assert next(seen) == 1
    assert begun[2].wait(10)


def test_a_fault_comes_where_its_result_would():
    """The items before it are not lost."""
    seen = one_ahead([1, 0, 2], lambda item: 1 / item)
    assert next(seen) == 1
    with pytest.raises(ZeroDivisionError):
        next(seen)


def test_a_consumer_that_stops_leaves_no_thread():
    """The pool ends with the generator."""
    before = threading.active_count()
    seen = one_ahead(range(100), str)
    next(seen)
    seen.close()
    assert threading.active_count() == before
