"""The audit of known vulnerabilities: what it makes of pip-audit's answers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

AUDIT = Path(__file__).resolve().parents[2] / ".ci" / "audit.py"

GOOD = {"name": "good", "version": "1", "vulns": []}
BAD = {"name": "bad", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]}
UNKNOWN = {"name": "unknown", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        ({"dependencies": [GOOD, UNKNOWN]}, 0, "Audited 1 of 2 packages: 0 known vulnerabilities."),
        ({"dependencies": [GOOD, BAD]}, 1, "bad 2: PYSEC-1, fixed in: 3"),
        ({"dependencies": [UNKNOWN]}, 0, "The audit did not run: the advisory service knows none"),
        (None, 0, "The audit did not run: ConnectionError: no network"),
    ],
)
def test_the_audit_fails_for_what_is_found_and_goes_on_where_it_cannot_ask(tmp_path, answer, code, said):
    """A found vulnerability fails the build; a service that is away is one line."""
    text = "" if answer is None else json.dumps(answer)
    stand_in = f"import sys; print({text!r}); print('ConnectionError: no network', file=sys.stderr); sys.exit(1)"
    (tmp_path / "pip_audit.py").write_text(stand_in)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, AUDIT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert said in done.stdout
