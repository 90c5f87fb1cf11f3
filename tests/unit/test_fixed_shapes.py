"""Fixed shapes: which rows go together, and what happens where their place in a batch matters."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from workers.batching import bucket_length
from workers.engines.fixed_shapes import CPU_TOKENS, FixedShapes


def plain(rows, _length):
    """Run rows on a device where their place does not matter."""
    return rows[:, None].astype(float)


def shapes(*, can_pad=True, probe=plain):
    """Return the shapes of a model of 256 tokens on a CPU."""
    return FixedShapes("cpu", 256, probe, can_pad=can_pad)


@given(st.lists(st.integers(1, 256), max_size=300))
def test_a_row_s_shape_depends_on_its_own_length_alone(lengths):
    """Every row is in one batch, padded to the length of its bucket."""
    lengths = np.array(lengths, np.int32)
    plan = shapes().plan(lengths)
    assert sorted(row for rows, _ in plan for row in rows.tolist()) == list(range(len(lengths)))
    for rows, length in plan:
        assert {min(bucket_length(int(n)), 256) for n in lengths[rows]} == {length}
        assert len(rows) <= CPU_TOKENS // length


def test_batches_are_filled_up():
    """Three rows go in a batch of as many rows as there always are."""
    seen = []

    def forward(rows, length):
        seen.append((len(rows), length))
        return rows[:, None].astype(float)

    assert shapes().run(np.array([4, 9, 2]), 32, forward).tolist() == [[4], [9], [2]]
    assert set(seen) == {(8, 32)}


def test_a_shape_is_tried_once_and_by_the_same_rows_everywhere():
    """Not by those of the corpus: two processes that decide differently would give a row different bits."""
    tried, ran = [], []

    def probe(rows, length):
        tried.append((rows.tolist(), length))
        return plain(rows, length)

    fixed = shapes(probe=probe)
    for _ in range(3):
        fixed.run(np.array([7, 5]), 32, lambda rows, length: ran.append(length) or plain(rows, length))
    assert tried == [([7, 0, 1, 2, 3, 4, 5, 6], 32), ([0, 1, 2, 3, 4, 5, 6, 7], 32)]
    assert ran == [32] * 3


def test_where_the_place_matters_rows_go_alone():
    """A device whose last row of a batch comes out otherwise by one bit."""
    seen = []

    def forward(rows, _length):
        seen.append(len(rows))
        out = rows[:, None].astype(np.float32) + 1
        if len(rows) > 1:
            out[-1] = np.nextafter(out[-1], np.float32(9))
        return out

    fixed = shapes(probe=forward)
    assert fixed.run(np.arange(8), 32, forward).tolist() == [[i + 1] for i in range(8)]
    assert seen == [8, 8, *[1] * 8]
    assert fixed.cost(3, 32) == 3 * 32


def test_a_model_that_pads_as_it_likes_gets_rows_alone():
    """As long as they are."""
    plan = shapes(can_pad=False).plan(np.array([5, 7, 5], np.int32))
    assert [(rows.tolist(), length) for rows, length in plan] == [([1], 7), ([0], 5), ([2], 5)]
    assert shapes(can_pad=False).run(np.array([3]), 5, lambda rows, _: rows[:, None]).tolist() == [[3]]
