"""The rounds: every contender in turn, in a fresh process each time, on the same rows."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks import lifeline
from tasks.endings import describe
from tasks.errors import Permanent
from tasks.settings import Settings
from workers.bench import conditions, watching
from workers.bench.batch_sizes import DEFAULT_BATCH_SIZE, best_sizes
from workers.bench.figures import Outcome
from workers.bench.plan import CEILING, PENSTOCK, Contender, cores, order
from workers.bench.subject import Subject
from workers.devices import find_devices


class Bench:
    """One bench.

    Args:
        subject: what is compared.
        folder: for the rows, the runs' files and penstock's state; removed by whoever made it.
        say: is told of each step, in a line.
        doing: is told what is running.
    """

    def __init__(
        self, subject: Subject, folder: Path, *, say: Callable[[str], None], doing: Callable[[str], None]
    ) -> None:
        self._subject = subject
        self._plan = subject.plan
        self._folder = folder
        self._say = say
        self._doing = doing
        self._gpus = [device for device in find_devices(Settings.load()) if not device.is_cpu]
        self._n_runs = 0

    def run(self) -> dict[str, Any]:
        """Run all rounds and return what goes into the JSON file.

        Raises:
            Permanent: the model cannot be loaded, or there is nothing to check the others against.
        """
        found = conditions.describe(self._gpus)
        self._subject.prepare(self._folder)
        precisions = self._subject.precisions(on_gpu=bool(self._gpus))
        surveys = {precision: self._survey(precision) for precision in precisions}
        self._subject.learn(surveys)
        everybody = [
            contender
            for precision, survey in surveys.items()
            for contender in self._subject.contenders(precision, best_sizes(survey))
        ]
        runs = self._run_rounds(everybody)
        return {
            "operation": self._subject.operation,
            "model": self._plan.model,
            "machine": found,
            **self._subject.describe(),
            "rounds": self._plan.rounds,
            "batch_sizes": {
                precision: {name: survey[name] for name in ("sample_rows", "batch_seconds")}
                for precision, survey in surveys.items()
            },
            "contenders": self._subject.summarise(runs),
        }

    def _run_rounds(self, everybody: Sequence[Contender]) -> dict[Contender, list[Outcome]]:
        runs: dict[Contender, list[Outcome]] = {contender: [] for contender in everybody}
        for round_ in range(self._plan.rounds):
            for contender in self._order(everybody, round_):
                where = f"round {round_ + 1} of {self._plan.rounds}: {contender.label}"
                self._doing(where)
                outcome = self._run_one(contender)
                runs[contender].append(outcome)
                self._say(f"{where}: {outcome.error or self._subject.speed(outcome)}")
                if outcome.error and round_ == 0 and self._subject.is_reference(contender):
                    raise Permanent(f"There is nothing to check the others against: {outcome.error}")
        return runs

    def _order(self, everybody: Sequence[Contender], round_: int) -> list[Contender]:
        """Return who runs when; in the first round the reference is first."""
        found = order(everybody, round_)
        return sorted(found, key=lambda contender: not self._subject.is_reference(contender)) if not round_ else found

    def _survey(self, precision: str) -> dict[str, Any]:
        self._doing(f"counting tokens, and looking for the best batch size in {precision}")
        alone = Contender("survey", 1, cores(), precision, DEFAULT_BATCH_SIZE)
        folder = self._new_folder()
        watched, result = self._run_task(alone, folder)
        if "error" in result:
            raise Permanent(result["error"])
        sizes = ", ".join(map(str, best_sizes(result)))
        self._say(f"best batch sizes of sentence-transformers in {precision}: {sizes} ({watched.seconds:.0f} s)")
        return result

    def _run_one(self, contender: Contender) -> Outcome:
        folder = self._new_folder()
        if contender.name == PENSTOCK:
            watched, result = self._run_penstock(contender, folder)
        else:
            watched, result = self._run_task(contender, folder)
        if "error" in result:
            return Outcome(error=result["error"])
        if contender.name == CEILING:
            return Outcome(command_s=watched.seconds, peak_bytes=watched.peak_bytes, **result)
        values = folder / "values.npy"
        try:
            agreement = self._subject.check(contender, np.load(values))
        except Permanent as exc:
            return Outcome(error=str(exc))
        finally:
            values.unlink()
        began, ended = result["began"], result["ended"]
        is_ours = contender.name == PENSTOCK
        return Outcome(
            seconds=ended - began,
            command_s=watched.seconds,
            device_use=watched.gpu_share(began, ended) if self._gpus else watched.cpu_share(began, ended, cores()),
            peak_bytes=watched.peak_bytes,
            gpu_peak_bytes=watched.gpu_peak_bytes,
            padded_tokens=result["padded_tokens"] if is_ours else self._subject.padded_tokens(contender),
            model_share=result.get("model_share"),
            **agreement,
        )

    def _run_task(self, contender: Contender, folder: Path) -> tuple[watching.Watched, dict[str, Any]]:
        """Run a peer, the survey or the ceiling."""
        n_gpus = len(self._gpus)
        devices = [f"cuda:{i % n_gpus}" if n_gpus else "cpu" for i in range(contender.processes)]
        task = {
            **self._subject.task(contender),
            "operation": self._subject.operation,
            "name": contender.name,
            "setup": {
                **self._subject.setup(),
                "model": self._plan.model,
                "devices": devices,
                "threads": contender.threads,
                "precision": contender.precision,
                "batch_size": contender.batch_size or DEFAULT_BATCH_SIZE,
            },
        }
        (folder / "task.json").write_text(json.dumps(task))
        command = [sys.executable, "-P", "-m", "workers.bench.contender", str(folder)]
        watched = self._watch(command, folder, _thread_limits(contender.threads))
        result = folder / "result.json"
        if result.exists() and result.stat().st_size:
            return watched, json.loads(result.read_text())
        return watched, {"error": _ending(watched)}

    def _run_penstock(self, contender: Contender, folder: Path) -> tuple[watching.Watched, dict[str, Any]]:
        """Run the command as a person would, with as many slots and threads."""
        command = [
            *(sys.executable, "-P", "-m", "producer.cli", *self._subject.command(), "--json", "--new"),
            *("--model", self._plan.model, "--out", str(folder / "values.npy")),
            *("--devices", "cuda" if self._gpus else "cpu", "--workers", str(contender.processes)),
            *("--threads-per-process", str(contender.threads), "--precision", contender.precision),
        ]
        watched = self._watch(lifeline.command(command), folder, {"PENSTOCK_STATE_DIR": str(self._folder / "state")})
        if watched.status != 0:
            said = (folder / "err").read_text(errors="replace").splitlines()
            lines = [line for line in said if line.startswith("penstock: ")]
            return watched, {"error": lines[-1].removeprefix("penstock: ") if lines else _ending(watched)}
        summary = json.loads((folder / "out").read_text())
        ended = summary["finished_ms"] / 1000
        return watched, {
            "began": ended - summary["work_seconds"],
            "ended": ended,
            "padded_tokens": summary["padded_tokens"],
            "model_share": summary["stage_seconds"]["model"] / (summary["work_seconds"] * contender.processes),
        }

    def _watch(self, command: list[str], folder: Path, changes: dict[str, str]) -> watching.Watched:
        # Nobody's settings of penstock's: what runs is what the plan says.
        own = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
        uuids = [gpu.uuid for gpu in self._gpus]
        # The same GPUs for everybody, numbered as they stand here.
        visible = {"CUDA_VISIBLE_DEVICES": ",".join(uuids)} if uuids else {}
        environment = {**own, "PYTHONSAFEPATH": "1", **visible, **changes}
        return watching.run(command, folder=folder, environment=environment, gpus=uuids)

    def _new_folder(self) -> Path:
        self._n_runs += 1
        folder = self._folder / f"run-{self._n_runs}"
        folder.mkdir()
        return folder


def _thread_limits(threads: int) -> dict[str, str]:
    """Return the variables that libraries read their number of threads from when they load."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    return {**dict.fromkeys(names, str(threads)), "TOKENIZERS_PARALLELISM": "false" if threads == 1 else "true"}


def _ending(watched: watching.Watched) -> str:
    if watched.status is None:
        return f"it hung for {watching.LIMIT_S:.0f} s and was ended"
    return describe(watched.status)
