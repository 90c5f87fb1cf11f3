"""Look up known vulnerabilities of the exact versions in constraints.txt; fail if there are any.

Where the advisory service cannot be reached, or knows none of the packages, one line says that the audit did not run,
and the build goes on.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

COMMAND = ["pip_audit", "--requirement", "constraints.txt", "--no-deps", "--disable-pip", "--format", "json"]
#: Seconds that it may take in all.
PATIENCE_S = 300


def main() -> int:
    """Audit, and return the exit status."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", *COMMAND, "--progress-spinner", "off", "--timeout", "10"],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        return _say(f"The audit did not run: no answer within {PATIENCE_S} s.")
    except (ValueError, LookupError):
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return _say(f"The audit did not run: {last}")
    audited = [package for package in found if "skip_reason" not in package]
    if not audited:
        return _say("The audit did not run: the advisory service knows none of the packages.")
    vulnerable = [(package, flaw) for package in audited for flaw in package["vulns"]]
    for package, flaw in vulnerable:
        fixed = ", ".join(flaw["fix_versions"]) or "none yet"
        _say(f"{package['name']} {package['version']}: {flaw['id']}, fixed in: {fixed}")
    _say(f"Audited {len(audited)} of {len(found)} packages: {len(vulnerable)} known vulnerabilities.")
    return int(bool(vulnerable))


def _say(line: str) -> int:
    print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
