"""What several unit tests share."""

from __future__ import annotations

import pytest

from tests.machines import Machine


@pytest.fixture
def host(monkeypatch, tmp_path):
    """Return a machine with eight cores, 64 of 80 GiB free and no GPU, and no settings but a test's."""
    for name in ("PENSTOCK_CONFIG", "HF_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.setenv("PENSTOCK_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return Machine(monkeypatch, tmp_path)
