"""The fake engine: deterministic, and a full encoder all the same."""

import numpy as np
import pytest

from tasks.errors import ModelNotFound
from tasks.messages import ModelSpec
from tasks.options import EncodeOptions
from tasks.settings import Settings
from workers.engines import load_engine
from workers.engines.fake import FakeEncoder

TEXTS = ["one", "two words", "", "three more words", "one", " ".join(["word"] * 40)]


def test_a_text_has_its_vector_wherever_it_is():
    """Alone, in a chunk, in another order and in another process it is the same."""
    encoder = FakeEncoder("fake:dim=8", Settings(max_batch_tokens=16))
    together = encoder.encode(TEXTS, EncodeOptions()).values
    for i, text in enumerate(TEXTS):
        alone = FakeEncoder("fake:dim=8", Settings(max_batch_tokens=1000)).encode([text], EncodeOptions()).values[0]
        np.testing.assert_array_equal(together[i], alone)
    np.testing.assert_array_equal(encoder.encode(TEXTS[::-1], EncodeOptions()).values, together[::-1])
    np.testing.assert_allclose(together[0, :2], [-0.8932526, 0.62631953], atol=1e-7)


def test_different_texts_have_different_vectors():
    """A row in the wrong place is noticed."""
    vectors = (
        FakeEncoder("fake", Settings(max_batch_tokens=100)).encode([str(i) for i in range(500)], EncodeOptions()).values
    )
    assert vectors.dtype == np.float32
    assert len(np.unique(vectors, axis=0)) == 500
    assert np.isfinite(vectors).all()


def test_tokens_are_words():
    """They are counted as far as the limit goes, and what is longer is marked."""
    encoded = FakeEncoder("fake:limit=3", Settings(max_batch_tokens=100)).encode(TEXTS, EncodeOptions())
    assert encoded.n_tokens.tolist() == [1, 2, 0, 3, 1, 3]
    assert encoded.truncated.tolist() == [False, False, False, False, False, True]
    assert encoded.errors == [None] * 6
    assert encoded.padded_tokens >= encoded.n_tokens.sum()


def test_words_beyond_the_limit_do_not_matter():
    """As in a real model, two texts with the same beginning have the same vector."""
    encoder = FakeEncoder("fake:limit=2", Settings(max_batch_tokens=100))
    vectors = encoder.encode(["a b c", "a b d", "a b"], EncodeOptions()).values
    np.testing.assert_array_equal(vectors[0], vectors[1])
    np.testing.assert_array_equal(vectors[0], vectors[2])


@pytest.mark.parametrize(("max_tokens", "fed"), [(2, 2), (5, 3)])
def test_the_stricter_limit_counts(max_tokens, fed):
    """The job's own, or the model's if it is lower."""
    encoded = FakeEncoder("fake:limit=3", Settings(max_batch_tokens=100)).encode(
        ["a b c d"], EncodeOptions(max_tokens=max_tokens)
    )
    assert encoded.n_tokens.tolist() == [fed]
    assert encoded.truncated.tolist() == [True]


def test_a_prompt_stands_before_every_text():
    """It is part of what is fed."""
    encoder = FakeEncoder("fake", Settings(max_batch_tokens=100))
    with_prompt = encoder.encode(["text"], EncodeOptions(prompt="query: "))
    np.testing.assert_array_equal(with_prompt.values, encoder.encode(["query: text"], EncodeOptions()).values)
    assert with_prompt.n_tokens.tolist() == [2]


def test_vectors_are_cut_and_then_scaled():
    """The options of a Matryoshka model work here too."""
    encoder = FakeEncoder("fake:dim=16", Settings(max_batch_tokens=100))
    options = EncodeOptions(truncate_dim=4, normalize=True)
    vectors = encoder.encode(TEXTS, options).values
    assert vectors.shape == (6, encoder.dim(options)) == (6, 4)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)


def test_what_the_model_has_not_is_refused():
    """Each refusal is a sentence that names the value."""
    encoder = FakeEncoder("fake:dim=16", Settings(max_batch_tokens=100))
    assert encoder.check(EncodeOptions()) is None
    assert encoder.check(EncodeOptions(truncate_dim=16)) is None
    assert "17" in encoder.check(EncodeOptions(truncate_dim=17))
    assert "'query'" in encoder.check(EncodeOptions(prompt_name="query"))


def test_other_sizes_are_other_weights():
    """A slot with another fake model is noticed as one with other weights would be."""
    weights = {
        FakeEncoder(name, Settings(max_batch_tokens=100)).weights for name in ("fake", "fake:dim=8", "fake:limit=8")
    }
    assert len(weights) == 3
    assert (
        FakeEncoder("fake:ms_per_row=1", Settings(max_batch_tokens=100)).weights
        == FakeEncoder("fake", Settings(max_batch_tokens=100)).weights
    )


@pytest.mark.parametrize(
    "name",
    [
        "fake:x=1", "fake:dim", "fake:dim=", "fake:dim=x", "fake:dim=0", "fake:dim=-4", "fake:dim=nan", "fake:dim=inf",
        "fake:limit=0", "fake:ms_per_row=-1", "fake:dim=4,x=1", "fake:dim=1e300",
    ],
)  # fmt: skip
def test_options_that_make_no_model_are_refused(name):
    """The line repeats what was given."""
    with pytest.raises(ModelNotFound, match=f"^--model {name}: "):
        FakeEncoder(name, Settings(max_batch_tokens=100))


def test_the_fake_engine_is_loaded_by_its_spec():
    """As any other is, and without torch."""
    encoder = load_engine(ModelSpec.parse("fake:dim=4"), "cpu", Settings())
    assert isinstance(encoder, FakeEncoder)
    assert encoder.dim(EncodeOptions()) == 4
