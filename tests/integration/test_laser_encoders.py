"""`--engine laser_encoders` where it cannot be used. What it computes, tests/laser compares with the package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tasks.errors import UsageError
from tasks.messages import ModelSpec
from tasks.settings import Settings
from tests.tiny_laser import make_laser2
from workers.engines import load_engine


def test_without_the_package_one_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No extra of penstock's can bring it."""
    monkeypatch.setitem(sys.modules, "laser_encoders", None)
    spec = ModelSpec.parse(f"laser:{make_laser2(tmp_path / 'model')}")
    with pytest.raises(
        UsageError, match=r"laser_encoders is not installed here. `make laser` .* docs/laser\.md"
    ) as told:
        load_engine(spec, "cpu", Settings(engine="laser_encoders"))
    assert "\n" not in str(told.value)


def test_it_is_for_laser_alone() -> None:
    """Another model would silently be run by another engine."""
    with pytest.raises(UsageError, match="--engine laser_encoders is for LASER; --model fake is another model"):
        load_engine(ModelSpec.parse("fake"), "cpu", Settings(engine="laser_encoders"))
