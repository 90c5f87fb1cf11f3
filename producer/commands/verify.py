"""``penstock verify``: a sample of a job's rows, computed again one at a time, beside the job's results."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import typer

from producer.commands import options as shared
from producer.verification import QUANTISED_TOLERANCE, TOLERANCE, Sample, compare, draw
from tasks import tables
from tasks.errors import UsageError
from tasks.messages import JobSpec
from tasks.settings import MIB, Settings

_EXAMPLES = """
[bold]Examples[/bold]

  penstock verify score-3f9a1c02de --broker redis://queue:6379/0

  penstock verify encode-3f9a1c02de --sample 1000 --tolerance 0.01 --devices cpu

  penstock verify encode-3f9a1c02de --quantize int8
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("verify", epilog=_EXAMPLES)(verify)


def verify(  # noqa: PLR0913 - one parameter an option
    job: shared.JobId,
    sample: Annotated[int, typer.Option(metavar="N", help="Rows to compute again.", min=1)] = 100,
    tolerance: Annotated[
        float | None,
        typer.Option(
            metavar="T",
            help=f"Largest difference that passes. fp32 beside bf16 needs more. Default: {TOLERANCE}, of quantised "
            f"weights {QUANTISED_TOLERANCE}.",
            min=0,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="Draw the rows that this seed drew before. Default: others each time."),
    ] = None,
    devices: shared.Devices = None,
    precision: shared.Precision = None,
    quantize: shared.Quantize = None,
    template: shared.Template = None,
    trust_remote_code: shared.TrustRemoteCode = None,
    broker: shared.Broker = None,
    store: shared.Store = None,
    as_json: shared.AsJson = False,
) -> None:
    """Compute random rows of a finished job again, one at a time in a process of its own, and compare.

    Says the largest and mean difference, the least cosine of vectors, and how many of the first ten ranks of a query
    are the same. Exits with 1 if a difference is past the tolerance. The results of an embedded job can be verified
    until they are collected. With the --quantize of the job's workers it also says what that saves, and how far the
    results are from those of fp32.
    """
    settings = shared.load_settings(locals())
    if importlib.util.find_spec("torch") is None:
        raise UsageError("This machine has no torch to compute rows with: pip install 'penstock[worker]'.")
    chosen = random.randrange(2**31) if seed is None else seed  # noqa: S311 - a sample, not a secret
    with shared.client_of(job, broker, store) as client:
        found = client.job(job)
        found.check_store()
        drawn = draw(client.ledger, client.store, found.spec, size=sample, seed=chosen)
        weights = found.status().weights
    table = _compute(found.spec, drawn, settings)
    verdict = compare(drawn, table, found.spec)
    loaded = tables.metadata_of(table)
    if tolerance is None:
        tolerance = QUANTISED_TOLERANCE if settings.quantize else TOLERANCE
    passes = verdict.passes(tolerance)
    result = {
        "job": job,
        **asdict(verdict),
        "tolerance": tolerance,
        "same_weights": loaded["weights"] == weights,
        "seed": chosen,
        "passes": passes,
    }
    if settings.quantize:
        result["quantize"] = settings.quantize
        result["weight_bytes"] = int(loaded["weight_bytes"])
        result["beside_fp32"] = _beside_fp32(found.spec, drawn, settings)
    if as_json:
        shared.print_json(result)
    else:
        _print(result)
    if not passes:
        raise typer.Exit(1)


def _compute(spec: JobSpec, sample: Sample, settings: Settings) -> pa.Table:
    """Have the rows computed where torch is."""
    with tempfile.TemporaryDirectory(prefix="penstock-verify-") as name:
        folder = Path(name)
        rows = pa.table([pa.array(column, pa.string()) for column in zip(*sample.rows, strict=True)], names=["a", "b"])
        (folder / "rows.arrow").write_bytes(tables.to_bytes(rows))
        (folder / "spec.json").write_text(spec.model_dump_json(), encoding="utf-8")
        status = subprocess.run(
            [sys.executable, "-P", "-m", "workers.verify", name], env=_environment(settings, folder), check=False
        ).returncode
        if status:
            raise typer.Exit(status if status > 0 else 1)
        return tables.from_bytes((folder / "values.arrow").read_bytes(), "values.arrow")


def _environment(settings: Settings, folder: Path) -> dict[str, str]:
    """Return an environment in which these settings hold, also those that are None: no file says otherwise."""
    config = folder / "penstock.yaml"
    config.write_text("", encoding="utf-8")
    own = {f"PENSTOCK_{name.upper()}" for name in Settings.model_fields}
    others = {name: value for name, value in os.environ.items() if name not in own}
    return {**others, **settings.environment(), "PENSTOCK_CONFIG": str(config), "PYTHONSAFEPATH": "1"}


def _beside_fp32(spec: JobSpec, sample: Sample, settings: Settings) -> dict[str, Any]:
    """Compare the job's rows with those of the same weights in fp32."""
    table = _compute(spec, sample, settings.model_copy(update={"quantize": None, "precision": "fp32"}))
    return {
        **asdict(compare(sample, table, spec)),
        "weight_bytes": int(tables.metadata_of(table)["weight_bytes"]),
    }


def _print(result: dict[str, Any]) -> None:
    lines = [
        f"{result['rows']:,} rows of {result['job']} computed again",
        f"largest difference: {result['largest']:.3g} (tolerance {result['tolerance']:g})",
        f"mean difference: {result['mean']:.3g}",
    ]
    if result["least_cosine"] is not None:
        lines.append(f"least cosine: {result['least_cosine']:.7f}, mean {result['mean_cosine']:.7f}")
    if result["equal_ranks"] is not None:
        lines.append(f"equal first ten ranks: {result['equal_ranks']:.1%} in {result['queries']:,} queries")
    if result["failed"]:
        lines.append(f"{result['failed']:,} rows could not be computed here")
    if not result["same_weights"]:
        lines.append(
            "the model that was loaded here is not the job's to the bit: other weights, or not the --precision, "
            "--quantize or PENSTOCK_BACKEND of its workers"
        )
    if "beside_fp32" in result:
        lines += _price(result)
    lines.append("passed" if result["passes"] else f"FAILED; --seed {result['seed']} draws the same rows")
    for line in lines:
        shared.out.print(line, markup=False)


def _price(result: dict[str, Any]) -> list[str]:
    """Say what quantised weights save, and what they cost."""
    full = result["beside_fp32"]
    least, most = result["weight_bytes"] / MIB, full["weight_bytes"] / MIB
    lines = [f"memory of the weights: {least:,.1f} MiB in {result['quantize']}, {most:,.1f} MiB in fp32"]
    if most:
        lines[0] += f": {1 - least / most:.0%} saved"
    if full["least_cosine"] is not None:
        lines.append(f"beside fp32: least cosine {full['least_cosine']:.5f}, mean {full['mean_cosine']:.5f}")
    lines.append(f"beside fp32: largest difference {full['largest']:.3g}, mean {full['mean']:.3g}")
    if full["equal_ranks"] is not None:
        lines.append(f"beside fp32: equal first ten ranks {full['equal_ranks']:.1%}")
    if full["failed"]:
        lines.append(f"beside fp32: {full['failed']:,} rows could not be computed")
    return lines
