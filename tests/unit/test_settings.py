"""Settings: defaults < penstock.yaml < PENSTOCK_* < arguments."""

import os
from pathlib import Path

import pytest

from tasks.errors import UsageError
from tasks.settings import Settings


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work in an empty folder, without settings in the environment."""
    for name in list(os.environ):
        if name.startswith("PENSTOCK_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def line_against(**arguments):
    """Return the one line that refuses the settings as they are."""
    with pytest.raises(UsageError) as caught:
        Settings.load(**arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_each_source_goes_before_the_one_below_it(folder, monkeypatch):
    """An argument wins over a variable, that over the file, and that over the default."""
    assert Settings.load().chunk_rows == 2000
    (folder / "penstock.yaml").write_text("chunk_rows: 10\nchunk_bytes: 11\nlease_s: 12\n")
    assert Settings.load().chunk_rows == 10
    monkeypatch.setenv("PENSTOCK_CHUNK_ROWS", "20")
    monkeypatch.setenv("PENSTOCK_CHUNK_BYTES", "21")
    assert Settings.load().chunk_rows == 20
    settings = Settings.load(chunk_rows=30)
    assert (settings.chunk_rows, settings.chunk_bytes, settings.lease_s) == (30, 21, 12.0)
    assert settings.heartbeat_s == 5.0


def test_an_argument_that_was_not_given_does_not_count(monkeypatch):
    """The CLI hands over None for every option that nobody named."""
    monkeypatch.setenv("PENSTOCK_MODEL", "fake")
    assert Settings.load(model=None, chunk_rows=None) == Settings.load()
    assert Settings.load(model=None).model == "fake"


def test_the_settings_file_may_be_elsewhere(folder, monkeypatch):
    """PENSTOCK_CONFIG names it, and the one of the working folder is not read then."""
    (folder / "penstock.yaml").write_text("chunk_rows: 10")
    (folder / "other.yaml").write_text("chunk_bytes: 11")
    monkeypatch.setenv("PENSTOCK_CONFIG", str(folder / "other.yaml"))
    settings = Settings.load()
    assert (settings.chunk_rows, settings.chunk_bytes) == (2000, 11)


def test_a_settings_file_that_was_named_must_be_there(monkeypatch):
    """Otherwise a typing error means defaults."""
    monkeypatch.setenv("PENSTOCK_CONFIG", "/nowhere/penstock.yaml")
    assert line_against() == "PENSTOCK_CONFIG=/nowhere/penstock.yaml: no such file."


def test_an_empty_settings_file_sets_nothing(folder):
    """Comments only are fine."""
    (folder / "penstock.yaml").write_text("# nothing yet\n")
    assert Settings.load().chunk_rows == 2000


def test_an_unknown_key_in_the_file_is_named(folder):
    """A misspelt setting is an error, not a default."""
    (folder / "penstock.yaml").write_text("chunk_row: 10\n")
    assert line_against() == (
        "Settings: chunk_row: Extra inputs are not permitted. They come from arguments, PENSTOCK_* variables and "
        "penstock.yaml."
    )


@pytest.mark.parametrize(
    "text",
    ["chunk_rows: [", "just some words", "- chunk_rows", "a: b: c", "[" * 5000, "\tchunk_rows: 1", "{1: 2}", "é: \x07"],
)
def test_a_file_that_holds_no_settings_is_named(folder, text):
    """Whatever is wrong with it, a person reads one line with the file's name."""
    (folder / "penstock.yaml").write_text(text)
    assert "penstock.yaml" in line_against()


def test_a_file_that_is_no_text_is_named(folder):
    """Bytes of another kind are no settings either."""
    (folder / "penstock.yaml").write_bytes(b"\xff\xfe\x00\x01")
    assert line_against().startswith("penstock.yaml: not a YAML file")


def test_the_place_of_a_mistake_in_the_file_is_named(folder):
    """The line number is where the reader stopped."""
    (folder / "penstock.yaml").write_text("chunk_rows: 1\nlease_s: [\n")
    assert line_against() == "penstock.yaml: not a YAML file with one `setting: value` a line (line 3)."


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("chunk_rows", "0"), ("chunk_rows", "many"), ("chunk_bytes", "-1"), ("heartbeat_s", "0"), ("lease_s", "soon"),
        ("max_attempts", "0"), ("max_queued_chunks", "0"), ("processes_per_device", "1.5"), ("max_batch_tokens", "x"),
    ],
)  # fmt: skip
def test_a_value_out_of_its_range_is_refused_with_its_name(monkeypatch, name, value):
    """From an argument and from a variable alike."""
    assert line_against(**{name: value}).startswith(f"Settings: {name}: Input should be ")
    monkeypatch.setenv(f"PENSTOCK_{name.upper()}", value)
    assert line_against().startswith(f"Settings: {name}: Input should be ")


def test_a_home_that_is_not_there_is_named(monkeypatch):
    """Containers often run as a user without one."""
    assert line_against(state_dir="~nobody-of-this-name/x").startswith("Settings: state_dir (~nobody-of-this-name/x) ")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert line_against().startswith("Settings: state_dir (~/.local/state/penstock) lies in a home that ")


def test_a_refused_value_is_not_shown(monkeypatch):
    """It may be a password that went into the wrong variable."""
    monkeypatch.setenv("PENSTOCK_CHUNK_ROWS", "hunter2")
    assert "hunter2" not in line_against()


def test_an_unknown_argument_is_refused():
    """A caller's mistake is no setting."""
    assert "chunk_row: Extra inputs" in line_against(chunk_row=1)


def test_variables_that_are_no_settings_do_no_harm(monkeypatch):
    """Nodes have more of that prefix."""
    monkeypatch.setenv("PENSTOCK_SHOWN_DEVICE", "cpu")
    assert Settings.load().devices == "auto"


def test_the_environment_makes_the_same_settings_again(monkeypatch):
    """A child process works with what its parent works with, also where the folder has a settings file."""
    settings = Settings.load(
        broker_url="unix:///run/v.sock?db=1",
        store_url="file:///data/a%20b",
        state_dir="/state dir/é",
        chunk_rows=7,
        max_queued_chunks=9,
        heartbeat_s=0.25,
        lease_s=0.5,
        model="org/name@main",
        devices="cuda:0,cuda:1",
        processes_per_device=3,
        threads_per_process=2,
        max_batch_tokens=4096,
    )
    variables = settings.environment()
    assert all(name.startswith("PENSTOCK_") and isinstance(value, str) for name, value in variables.items())
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    Path("penstock.yaml").write_text("chunk_rows: 1\nlease_s: 1\nmodel: other\n")
    assert Settings.load() == settings


def test_what_is_not_set_is_not_in_the_environment():
    """An empty text would be no default."""
    variables = Settings.load().environment()
    assert "PENSTOCK_BROKER_URL" not in variables
    assert variables["PENSTOCK_CHUNK_ROWS"] == "2000"


def test_the_state_folder_follows_the_desktop_convention(folder, monkeypatch):
    """$XDG_STATE_HOME, else ~/.local/state."""
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert Settings.load().state_dir == folder / ".local" / "state" / "penstock"
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert Settings.load().state_dir == Path("/state/penstock")


def test_every_setting_is_described():
    """The documentation and the help are made of it."""
    assert all(field.description for field in Settings.model_fields.values())
