"""Equal texts of a call are computed once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.isolation import Runner, run_bisecting
from tasks.options import EncodeOptions
from tasks.settings import Settings
from tests.encoders import CountingEncoder, assert_same_rows
from workers.distinct import DistinctEncoder
from workers.engines.fake import FakeEncoder

OPTIONS = EncodeOptions()

#: Texts of few words, so that they repeat, and some of which the encoder refuses, fails on, or cuts.
TEXTS = st.lists(st.lists(st.sampled_from(["a", "b", "ö", "!bad"]), max_size=6).map(" ".join), max_size=30)


@given(TEXTS)
def test_the_result_is_that_of_the_plain_encoder(texts):
    """Vectors, tokens, truncation and errors, in the order of the rows; the model saw each text once."""
    counting = CountingEncoder()
    encoded = DistinctEncoder(counting).encode(texts, OPTIONS)
    assert_same_rows(encoded, CountingEncoder().encode(texts, OPTIONS))
    assert sorted(counting.seen) == sorted(set(texts))
    assert encoded.duplicate_rows == len(texts) - len(set(texts))


def test_what_went_through_the_model_is_counted_once():
    """A row counts its tokens whoever computed them; padded tokens are those of the model."""
    encoded = DistinctEncoder(CountingEncoder()).encode(["a b c"] * 10, OPTIONS)
    assert encoded.n_tokens.sum() == 30
    assert encoded.padded_tokens == 3


def test_texts_without_repeats_are_passed_on_as_they_are():
    """Nothing is copied for nothing."""
    texts = ["a", "b"]
    counting = CountingEncoder()
    assert DistinctEncoder(counting).encode(texts, OPTIONS) is counting.made[-1]


def test_texts_that_differ_in_anything_are_different():
    """Case, space and composition are the tokenizer's business."""
    texts = ["a", "A", "a ", "é", "e\u0301", ""]
    counting = CountingEncoder()
    DistinctEncoder(counting).encode(texts, OPTIONS)
    assert counting.seen == texts


def test_a_row_that_raises_is_found_among_its_repeats():
    """Every row with its text becomes an error row, and the others have their vectors."""
    texts = ["a", "!raise", "b", "a", "!raise"]
    encoder = DistinctEncoder(CountingEncoder())
    encoded = run_bisecting(Runner(lambda rows: encoder.encode(rows, OPTIONS), lambda text, _: text, 4), texts)
    assert [error is None for error in encoded.errors] == [True, False, True, True, False]
    np.testing.assert_array_equal(encoded.values[0], encoded.values[3])


def test_each_batch_is_announced():
    """The time limits hear of what really runs."""
    heard = []
    DistinctEncoder(CountingEncoder()).encode(["a b"] * 9, OPTIONS, heard.append)
    assert heard == [2]


@pytest.mark.parametrize("options", [EncodeOptions(truncate_dim=2), EncodeOptions(truncate_dim=99)])
def test_the_model_behind_answers_questions(options):
    """Its weights, its budget, its vectors' length, and what it cannot serve."""
    model = CountingEncoder()
    encoder = DistinctEncoder(model)
    assert (encoder.weights, encoder.batch_tokens) == (model.weights, model.batch_tokens)
    assert (encoder.check(options), encoder.dim(options)) == (model.check(options), model.dim(options))


def test_it_stands_before_the_fake_engine():
    """A whole engine, with batches of its own."""
    texts = ["one", "two words", "one"] * 50
    encoded = DistinctEncoder(FakeEncoder("fake", Settings())).encode(texts, OPTIONS)
    assert_same_rows(encoded, FakeEncoder("fake", Settings()).encode(texts, OPTIONS))
    assert encoded.duplicate_rows == 148
