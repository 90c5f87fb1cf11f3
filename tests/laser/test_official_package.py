"""LASER as penstock reads it, and as penstock runs its official package, against that package as it comes."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.options import EncodeOptions
from tasks.settings import Settings
from tests.laser.texts import texts
from tests.tiny_laser import make_laser2, make_laser3
from workers.engines.laser.encoder import LaserEncoder
from workers.engines.laser_encoders import OfficialLaserEncoder

#: Name of each checkpoint, and how it is made.
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "laser2": {},
    "laser3-wol_Latn": {"masked": False},
    "laser3-fon_Latn": {"masked": True},
    "laser3-kir_Cyrl": {"masked": False, "own_pieces": True, "has_decoder": False},
    "laser3-tir_Ethi": {"masked": True, "own_pieces": True, "has_decoder": False},
    "laser3-ibo_Latn": {"masked": True, "left_pad": True},
}
N_TEXTS = 4000
#: The largest difference between numbers of a vector: sums in another order.
TOLERANCE = 1e-6


class Trio:
    """One checkpoint three times: by the package alone, by penstock's reader, and by penstock with the package."""

    def __init__(self, name: str, folder: Path) -> None:
        settings = Settings(max_batch_tokens=2000)
        self.name = name
        self.ours = LaserEncoder(name, folder, "cpu", settings)
        self.engine = OfficialLaserEncoder(name, folder, "cpu", settings)
        package = self.engine._encoder
        own = folder / f"{name}.v1.cvocab"
        with torch.serialization.safe_globals([Namespace]):
            self.package = type(package)(
                str(next(folder.glob(f"{name}*.pt"))),
                spm_vocab=str(own if own.exists() else folder / "laser2.cvocab"),
                cpu=True,
            )
        self.tokenize = self.engine._tokenizer.tokenize

    def expected_ids(self, text: str) -> list[int]:
        """Return the package's token ids."""
        return self.package._tokenize(self.tokenize(text)).tolist()

    def expected(self, rows: list[str]) -> np.ndarray:
        """Return the package's vectors, of one sentence at a time, (n_rows, dim)."""
        return self.package.encode_sentences([self.tokenize(row) for row in rows])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All checkpoints in one folder."""
    found = tmp_path_factory.mktemp("laser")
    make_laser2(found)
    for name, kind in CHECKPOINTS.items():
        if name != "laser2":
            make_laser3(found, name.removeprefix("laser3-"), **kind)
    return found


@pytest.fixture(scope="module", params=CHECKPOINTS)
def trio(request: pytest.FixtureRequest, folder: Path) -> Trio:
    """One checkpoint after the other."""
    return Trio(request.param, folder)


def test_token_ids_are_those_of_the_package(trio: Trio) -> None:
    """On thousands of texts in all scripts, with emoji, controls and odd white space, empty and very long."""
    rows = list(texts(N_TEXTS, seed=1))
    found = [ids.tolist() for ids in trio.ours._steps(rows)]
    assert [i for i, row in enumerate(rows) if found[i] != trio.expected_ids(row)] == []
    assert len({tuple(ids) for ids in found}) > N_TEXTS * 0.9, "the texts are not all unknown tokens"


@given(text=st.text())
def test_token_ids_are_those_of_the_package_on_any_text(trio: Trio, text: str) -> None:
    """Whatever Unicode holds."""
    assert trio.ours._steps([text])[0].tolist() == trio.expected_ids(text)


@pytest.mark.parametrize("which", ["ours", "engine"])
def test_vectors_are_those_of_the_package(trio: Trio, which: str) -> None:
    """In batches of rows of all lengths, each row has the vector that it has alone."""
    rows = [row for row in texts(600, seed=2) if len(row) < 2000]
    found = getattr(trio, which).encode(rows, EncodeOptions())
    assert found.errors == [None] * len(rows)
    np.testing.assert_allclose(found.values, trio.expected(rows), rtol=0, atol=TOLERANCE)
    assert found.n_tokens.tolist() == [len(trio.expected_ids(row)) for row in rows]
    assert not found.truncated.any()
    assert np.ptp(found.values, axis=0).max() > 100 * TOLERANCE, "the vectors differ from each other"


@pytest.mark.parametrize("which", ["ours", "engine"])
def test_texts_beyond_a_student_s_1024_tokens_are_read_whole(trio: Trio, which: str) -> None:
    """As by the package: a position is a sine, and there is one for every place."""
    row = "word " * 1500 + "end"
    found = getattr(trio, which).encode([row], EncodeOptions())
    assert found.n_tokens[0] == len(trio.expected_ids(row)) > 1500
    assert not found.truncated[0]
    np.testing.assert_allclose(found.values, trio.expected([row]), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "options", [{"max_tokens": 9}, {"normalize": True}, {"reproducible": True}], ids=lambda options: next(iter(options))
)
def test_options_do_the_same_to_both_engines(trio: Trio, options: dict[str, Any]) -> None:
    """Rows are cut at the same token, and scaled alike."""
    rows = list(texts(60, seed=3))
    ours, engine = (encoder.encode(rows, EncodeOptions(**options)) for encoder in (trio.ours, trio.engine))
    np.testing.assert_allclose(engine.values, ours.values, rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(engine.n_tokens, ours.n_tokens)
    np.testing.assert_array_equal(engine.truncated, ours.truncated)
    assert engine.errors == ours.errors
    assert trio.engine.check(EncodeOptions(max_tokens=2)) == trio.ours.check(EncodeOptions(max_tokens=2))


def test_the_engines_do_not_serve_one_job_together(trio: Trio) -> None:
    """Their vectors differ in their last bits, so their fingerprints differ."""
    assert trio.engine.weights != trio.ours.weights


def test_a_full_size_laser2_gives_the_same_vectors(tmp_path: Path) -> None:
    """Five layers of 512 in both directions add up more roundings than tiny ones."""
    rows = [row for row in texts(60, seed=4) if len(row) < 500][:30]
    full = Trio("laser2", Path(make_laser2(tmp_path, full_size=True)))
    expected = full.expected(rows)
    assert expected.shape == (30, 1024)
    for encoder in (full.ours, full.engine):
        np.testing.assert_allclose(encoder.encode(rows, EncodeOptions()).values, expected, rtol=0, atol=TOLERANCE)


def test_the_package_leaves_stdout_to_results(folder: Path) -> None:
    """It would log its files there, and set up logs for everybody."""
    script = (
        "import logging, sys; from pathlib import Path; from tasks.settings import Settings\n"
        "from workers.engines.laser_encoders import OfficialLaserEncoder\n"
        "OfficialLaserEncoder('laser2', Path(sys.argv[1]), 'cpu', Settings(max_batch_tokens=500))\n"
        "logging.getLogger('preprocess').info('to nobody'); print(logging.getLogger().handlers)\n"
    )
    ran = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
    assert ran.stderr == ""


def test_the_stand_in_refuses_encoders_that_it_has_not() -> None:
    """A student with learned positions would silently get others."""
    from fairseq.data.dictionary import Dictionary
    from fairseq.models.transformer import Embedding, TransformerEncoder

    args = Namespace(encoder_embed_dim=8, encoder_learned_pos=True)
    with pytest.raises(ValueError, match="no encoder with encoder_learned_pos=True"):
        TransformerEncoder(args, Dictionary(), Embedding(4, 8, 1))


def test_the_stand_in_refuses_a_vocabulary_with_a_token_twice(tmp_path: Path) -> None:
    """All numbers behind it would be wrong by one."""
    from fairseq.data.dictionary import Dictionary

    (tmp_path / "cvocab").write_text("one 3\ntwo 2\none 1\n")
    with pytest.raises(ValueError, match="line 3"):
        Dictionary.load(str(tmp_path / "cvocab"))
