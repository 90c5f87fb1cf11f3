"""The notes of how idle a GPU was, which a node leaves for the next start."""

from __future__ import annotations

import pytest

from tasks.messages import ModelSpec
from tasks.settings import Settings
from tasks.workforce import SlotStatus
from workers.idleness import ENOUGH_S, NOTE_VARIABLE, Idleness, IdlenessNotes, note_path


def slot(model_s, idle_s):
    """Return a slot that worked and waited for so long."""
    return SlotStatus("n/0", "n", "host", 1, "cuda:0", "m", "q", "s", "ready", model_s=model_s, idle_s=idle_s)


@pytest.fixture
def path(tmp_path):
    """Return where the note goes; its folder is not there yet."""
    return tmp_path / "devices" / "note.json"


def test_nothing_is_noted_before_there_was_enough_work(path):
    """Of every slot: one that just started knows nothing."""
    notes = IdlenessNotes(path, 2)
    notes.see([])
    notes.see([slot(ENOUGH_S, 0)])
    notes.see([slot(ENOUGH_S, 0), slot(ENOUGH_S / 2, 1)])
    notes.see([slot(ENOUGH_S, 0), slot(0, 2 * ENOUGH_S)])
    assert not path.exists()
    notes.see([slot(ENOUGH_S, 0), slot(ENOUGH_S / 2, ENOUGH_S / 2)])
    assert Idleness.read(path) == Idleness(2, 0.0)


@pytest.mark.parametrize(
    ("slots", "idle_share"),
    [
        ([(90, 10)], 0.1), ([(25, 75)], 0.75), ([(100, 0)], 0.0),
        ([(30, 70), (40, 60)], 0.3), ([(60, 40), (60, 40)], 0.0), ([(10, 90)] * 4, 0.6),
    ],
)  # fmt: skip
def test_the_device_is_idle_when_no_process_keeps_it_busy(path, slots, idle_share):
    """Their shares add up, as the work of one hardly overlaps with another's on the same device."""
    IdlenessNotes(path, len(slots)).see([slot(*seconds) for seconds in slots])
    assert Idleness.read(path) == Idleness(len(slots), idle_share)


def test_a_note_is_written_anew_when_the_work_has_doubled(path):
    """Not at each look, which come every second."""
    notes = IdlenessNotes(path, 1)
    notes.see([slot(100, 0)])
    notes.see([slot(100, 90)])
    assert Idleness.read(path) == Idleness(1, 0.0)
    notes.see([slot(100, 100)])
    assert Idleness.read(path) == Idleness(1, 0.5)
    assert [file.name for file in path.parent.iterdir()] == ["note.json"]


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"processes": 0, "idle_share": 0.5}', '{"processes": 2, "idle_share": 7}', "7",
             '{"processes": "x", "idle_share": 0}', '{"processes": 1, "idle_share": 0.5, "more": 1}'],
)  # fmt: skip
def test_a_note_that_makes_no_sense_is_none(path, text):
    """It is a hint, and the size of the model decides instead."""
    path.parent.mkdir()
    path.write_text(text)
    assert Idleness.read(path) is None


def test_a_folder_that_cannot_be_written_does_no_harm(path):
    """The node goes on."""
    path.parent.write_text("a file where the folder should be")
    IdlenessNotes(path, 1).see([slot(100, 0)])
    assert Idleness.read(path) is None


def test_a_node_notes_where_its_plan_says(path, monkeypatch):
    """A node on a CPU is told of no place."""
    monkeypatch.delenv(NOTE_VARIABLE, raising=False)
    IdlenessNotes.of_environment(1).see([slot(100, 0)])
    assert not path.exists()
    monkeypatch.setenv(NOTE_VARIABLE, str(path))
    IdlenessNotes.of_environment(1).see([slot(100, 0)])
    assert path.exists()


def test_each_model_on_each_kind_of_device_has_its_note(tmp_path):
    """Two GPUs of a kind share one."""
    settings = Settings(state_dir=tmp_path)
    spec = ModelSpec.parse("org/name")
    path = note_path(settings, spec, "NVIDIA A100-SXM4-40GB MIG 3g.20gb")
    assert path == tmp_path / "devices" / f"processes-{spec.digest}-nvidia-a100-sxm4-40gb-mig-3g-20gb.json"
