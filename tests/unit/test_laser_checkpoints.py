"""Which checkpoint of LASER is for which language, and which files it has."""

from __future__ import annotations

from pathlib import Path

import pytest

from producer.estimate import _dim_of
from tasks.errors import ModelNotFound, UsageError
from tasks.messages import ModelSpec
from tasks.options import EncodeOptions
from workers.engines.laser.checkpoints import choose, files_of, in_folder, named_by, published, refusal
from workers.model_size import count_parameters

NOWHERE = Path("/nowhere")


def test_the_list_has_what_was_published():
    """147 students, 35 of them with pieces of their own, 91 languages of LASER2."""
    lists = published()
    assert (len(lists.laser3), len(lists.own_pieces), len(lists.laser2)) == (147, 35, 91)
    assert set(lists.own_pieces) < set(lists.laser3)
    assert set(lists.names) <= {*lists.laser2, *lists.laser3}


@pytest.mark.parametrize(
    ("language", "checkpoint"),
    [
        ("eng_Latn", "laser2"),
        ("eng", "laser2"),
        ("english", "laser2"),
        ("zho", "laser2"),
        ("wol_Latn", "laser3-wol_Latn"),
        ("wol", "laser3-wol_Latn"),
        ("wolof", "laser3-wol_Latn"),
        ("hin", "laser3-hin_Deva"),
        ("kas_Deva", "laser3-kas_Deva"),
        ("central_aymara", "laser3-ayr_Latn"),
        ("norwegian_bokmal", "laser2"),
        ("taizzi-adeni_arabic", "laser2"),
    ],
)
def test_a_language_has_its_student_or_laser2(language, checkpoint):
    """By its code, the code's first letters, or its name; a student goes before LASER2."""
    assert choose(language) == checkpoint


def test_every_name_of_the_list_can_be_given():
    """A job takes no language with blanks or accents in it: that might be a text."""
    for code, name in published().spelled.items():
        assert EncodeOptions(language=name).language == name
        assert code in published().codes(name, [code])
    assert len(set(published().spelled.values())) == len(set(published().names.values()))


def test_a_folder_s_own_student_goes_before_the_published_ones():
    """Whether the list has its language or not."""
    assert choose("xyz_Latn", ["laser3-xyz_Latn"]) == choose("xyz", ["laser3-xyz_Latn"]) == "laser3-xyz_Latn"
    assert choose("eng", ["laser3-eng_Latn"]) == "laser3-eng_Latn"
    assert choose("kas", ["laser3-kas_Deva"]) == "laser3-kas_Deva"
    assert choose("wol", ["laser3-xyz_Latn"]) == "laser3-wol_Latn"
    with pytest.raises(UsageError, match="may be xyz_Arab or xyz_Latn; say which"):
        choose("xyz", ["laser3-xyz_Arab", "laser3-xyz_Latn"])


def test_a_folder_without_its_path_is_told_how_to_be_named():
    """``models`` alone could be a checkpoint."""
    with pytest.raises(UsageError, match=r"and laser:\./FOLDER\."):
        ModelSpec.parse("laser:models")


@pytest.mark.parametrize(
    ("language", "said"),
    [
        ("kas", "language 'kas' may be kas_Arab or kas_Deva; say which"),
        ("wolofe", "LASER has no language 'wolofe'; did you mean wolof or wol?"),
        ("Q", "LASER has no language 'Q'; languages are given as eng_Latn, eng or english"),
        ("\n" * 500, "LASER has no language '" + "\\n" * 40 + "'; languages are given as eng_Latn, eng or english"),
    ],
)
def test_a_language_that_says_nothing_is_refused(language, said):
    """In one line, with languages that were perhaps meant."""
    with pytest.raises(UsageError) as caught:
        choose(language)
    assert str(caught.value) == said


def test_a_checkpoint_refuses_another_ones_language():
    """And says what to use. LASER2 takes its own languages even where they have a student."""
    assert refusal("laser2", "eng") is None
    assert refusal("laser2", "hin_Deva") is None
    assert refusal("laser3-wol_Latn", "wolof") is None
    assert refusal("laser2", "wol") == (
        "language 'wol' is not laser2's; use --model laser:laser3-wol_Latn, or --model laser, which chooses by language"
    )
    assert "--model laser:laser2" in str(refusal("laser3-wol_Latn", "eng_Latn"))
    assert refusal("laser2", "Q") == "LASER has no language 'Q'; languages are given as eng_Latn, eng or english"


def test_files_are_those_that_are_published():
    """A student has pieces of its own only if the list says so, or they lie there."""
    assert files_of("laser2", NOWHERE).names == ["laser2.pt", "laser2.spm"]
    assert files_of("laser3-wol_Latn", NOWHERE).names == ["laser3-wol_Latn.v1.pt", "laser2.spm", "laser2.cvocab"]
    assert files_of("laser3-kab_Latn", NOWHERE).names == [
        f"laser3-kab_Latn.v1.{kind}" for kind in ("pt", "spm", "cvocab")
    ]


def test_a_folder_with_own_pieces_is_believed(tmp_path):
    """A student that somebody trained may have them."""
    (tmp_path / "laser3-xyz_Latn.v1.spm").touch()
    assert files_of("laser3-xyz_Latn", tmp_path).pieces == "laser3-xyz_Latn.v1.spm"


def test_a_model_names_its_checkpoints(tmp_path):
    """All of them, one, or those in a folder, LASER2 first."""
    assert named_by(ModelSpec.parse("laser"), NOWHERE)[:2] == ["laser2", "laser3-ace_Latn"]
    assert named_by(ModelSpec.parse("laser:laser2"), NOWHERE) == ["laser2"]
    assert named_by(ModelSpec.parse("laser:laser3-wol"), NOWHERE) == ["laser3-wol_Latn"]
    for name in ("laser3-wol_Latn.v1.pt", "laser2.pt", "laser2.spm", "notes.pt"):
        (tmp_path / name).touch()
    assert named_by(ModelSpec.parse(f"laser:{tmp_path}"), tmp_path) == ["laser2", "laser3-wol_Latn"]
    assert in_folder(tmp_path) == ["laser2", "laser3-wol_Latn"]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("laser:laser3-kas", "may be several students; there is laser3-kas_Arab or laser3-kas_Deva."),
        ("laser:laser3-wol_Lata", "is none of the published students; there is laser3-wol_Latn"),
    ],
)
def test_a_student_that_there_is_not_is_named(model, said):
    """With those that there are."""
    with pytest.raises(ModelNotFound, match=said):
        named_by(ModelSpec.parse(model), NOWHERE)


def test_a_folder_without_checkpoints_is_refused(tmp_path):
    """It says which files it wants."""
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelNotFound, match=r"neither laser2\.pt nor a laser3-CODE\.v1\.pt"):
        count_parameters(ModelSpec.parse(f"laser:{tmp_path}"))


def test_a_plan_counts_laser2_and_the_largest_student(tmp_path, monkeypatch):
    """They are loaded one by one; what is not here yet counts for nothing."""
    for name, n_bytes in (("laser2.pt", 400), ("laser3-wol_Latn.v1.pt", 4000), ("laser3-kab_Latn.v1.pt", 800)):
        (tmp_path / name).write_bytes(b"x" * n_bytes)
    assert count_parameters(ModelSpec.parse(f"laser:{tmp_path}")) == 1100
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert count_parameters(ModelSpec.parse("laser")) is None
    (tmp_path / "penstock").mkdir()
    (tmp_path / "penstock" / "laser").symlink_to(tmp_path)
    assert count_parameters(ModelSpec.parse("laser:laser2")) == 100
    assert count_parameters(ModelSpec.parse("laser:laser3-kab_Latn")) == 200


def test_an_estimate_knows_the_length_of_laser_s_vectors():
    """Without a file of it."""
    assert _dim_of("laser") == 1024
