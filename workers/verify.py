"""The worker's part of ``penstock verify``: rows computed one at a time, in a process that does nothing else.

``python -m workers.verify FOLDER``. The folder holds ``spec.json``, a JobSpec, and ``rows.arrow``, the texts or pairs;
``values.arrow`` comes to stand beside them: a value per row, or why there is none, and what was loaded.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.progress import track

from tasks import tables
from tasks.errors import PenstockError, Permanent, place_of
from tasks.messages import JobSpec
from tasks.operations import OPERATIONS
from tasks.ports import Computed, Pair, Passage
from tasks.settings import Settings
from workers.devices import find_devices


def main() -> int:
    """Compute the rows. Returns the exit status."""
    folder = Path(sys.argv[1])
    spec = JobSpec.model_validate_json((folder / "spec.json").read_bytes())
    try:
        values, errors, loaded = _compute(spec, _rows(folder / "rows.arrow", spec))
    except PenstockError as exc:
        print(f"penstock verify: {exc}", file=sys.stderr)  # noqa: T201 - what a person sees
        return exc.exit_code
    flat = pa.array(values.reshape(-1))
    value = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    table = pa.table({"value": value, "error": pa.array(errors, pa.string())})
    (folder / "values.arrow").write_bytes(tables.to_bytes(table, loaded))
    return 0


def _rows(file: Path, spec: JobSpec) -> list[Any]:
    table = tables.from_bytes(file.read_bytes(), file.name)
    kind = Pair if spec.operation == "score" else Passage
    return list(map(kind, *(column.to_pylist() for column in table.columns)))


def _compute(spec: JobSpec, rows: list[Any]) -> tuple[np.ndarray, list[str | None], dict[str, str]]:
    """Return (n_rows, dim) values, the reasons where there is none, and the weights' fingerprint and bytes.

    Raises:
        Permanent: the model cannot serve the job's options here.
    """
    settings = Settings.load(model=str(spec.model), operation=spec.operation, max_batch_tokens=1)
    settings = settings.model_copy(update={"shard": None})  # one process on one device, whatever the job's workers had
    device = find_devices(settings)[0]
    if not device.is_cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = device.uuid
    from transformers.utils import logging  # now, because it imports torch, which looks for its devices

    from workers.engines import load_engine

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]

    engine: Any = load_engine(spec.model, "cpu" if device.is_cpu else "cuda", settings)
    problem = engine.check(spec.options)
    if problem:
        raise Permanent(problem)
    work = OPERATIONS[spec.operation]

    def compute(row: Any) -> Computed:
        try:
            return work.run(engine, [row], spec.options, lambda _: None)
        except PenstockError:
            raise
        except Exception as exc:  # noqa: BLE001 - whatever an engine raises, the other rows go on
            return Computed(np.zeros((1, 1)), np.zeros(1), np.zeros(1, bool), [f"the engine failed: {place_of(exc)}"])

    found = [compute(row) for row in track(rows, "verifying", transient=True, disable=not sys.stderr.isatty())]
    dim = engine.dim(spec.options)
    values = [one.values[0] if one.errors[0] is None else np.zeros(dim, np.float32) for one in found]
    loaded = {"weights": engine.weights, "weight_bytes": str(getattr(engine, "weight_bytes", 0))}
    return np.array(values, np.float32), [one.errors[0] for one in found], loaded


if __name__ == "__main__":
    sys.exit(main())
