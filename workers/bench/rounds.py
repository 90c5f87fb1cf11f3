"""The rounds: every contender in turn, in a fresh process each time, on the same corpus."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tasks import lifeline
from tasks.endings import describe
from tasks.errors import Permanent
from tasks.settings import Settings
from workers.bench import agreement, conditions, corpus, watching
from workers.bench.figures import Corpus, Outcome, summarise
from workers.bench.plan import (
    BATCH_SIZES,
    CEILING,
    FINALISTS,
    PENSTOCK,
    BenchPlan,
    Contender,
    contenders,
    cores,
    order,
)
from workers.bench.work import Work
from workers.devices import find_devices

#: The batch size that sentence-transformers has by default; the survey begins with it.
DEFAULT_BATCH_SIZE = 32


class Bench:
    """One bench.

    Args:
        plan: what is compared.
        folder: for the corpus, the runs' files and penstock's state; removed by whoever made it.
        say: is told of each step, in a line.
        doing: is told what is running.
    """

    def __init__(
        self, plan: BenchPlan, folder: Path, *, say: Callable[[str], None], doing: Callable[[str], None]
    ) -> None:
        self._plan = plan
        self._folder = folder
        self._say = say
        self._doing = doing
        self._gpus = [device for device in find_devices(Settings.load()) if not device.is_cpu]
        self._corpus = (plan.corpus or folder / "corpus.jsonl").absolute()
        self._n_runs = 0

    def run(self) -> dict[str, Any]:
        """Run all rounds and return what goes into the JSON file.

        Raises:
            Permanent: the model cannot be loaded.
        """
        found = conditions.describe(self._gpus)
        if self._plan.corpus is None:
            corpus.write_texts(self._corpus, corpus.make_up(self._plan.max_rows))
        texts = corpus.read_texts(self._corpus)
        self._n_rows = len(texts)
        precisions = ("fp32", "fp16") if self._gpus else ("fp32",)
        surveys = {precision: self._survey(precision) for precision in precisions}
        first = surveys["fp32"]
        self._reference = np.array(first["vectors"])
        self._work = Work([(n_in, n_out) for n_in, n_out in first["linears"]], first["attention"])
        self._counts = Corpus(np.array(first["lengths"]), np.array([len(text) for text in texts]))
        runs = self._run_rounds(surveys)
        return {
            "operation": "encode",
            "model": self._plan.model,
            "machine": found,
            "corpus": {
                "name": self._plan.corpus_name,
                "rows": self._n_rows,
                "tokens": self._counts.tokens,
                "mean_tokens": self._counts.tokens / self._n_rows,
                "characters": int(self._counts.n_chars.sum()),
            },
            "rounds": self._plan.rounds,
            "flops_per_token": self._work.flops(self._counts.lengths) / self._counts.tokens,
            "batch_sizes": {
                precision: {name: survey[name] for name in ("sample_rows", "batch_seconds")}
                for precision, survey in surveys.items()
            },
            "contenders": summarise(runs, self._counts, self._work),
        }

    def _run_rounds(self, surveys: dict[str, dict[str, Any]]) -> dict[Contender, list[Outcome]]:
        everybody = [
            contender
            for precision, survey in surveys.items()
            for contender in contenders(self._plan, precision, _best_sizes(survey))
        ]
        runs: dict[Contender, list[Outcome]] = {contender: [] for contender in everybody}
        for round_ in range(self._plan.rounds):
            for contender in order(everybody, round_):
                where = f"round {round_ + 1} of {self._plan.rounds}: {contender.label}"
                self._doing(where)
                outcome = self._run_one(contender)
                runs[contender].append(outcome)
                self._say(f"{where}: {self._shown(outcome)}")
        return runs

    def _shown(self, outcome: Outcome) -> str:
        if outcome.error:
            return outcome.error
        if outcome.flops_per_s:
            return f"{outcome.flops_per_s / 1e9:,.0f} GFLOP/s by {outcome.kernel}"
        return f"{self._counts.tokens / outcome.seconds:,.0f} tokens/s"

    def _survey(self, precision: str) -> dict[str, Any]:
        self._doing(f"counting tokens, and looking for the best batch size in {precision}")
        alone = Contender("survey", 1, cores(), precision, DEFAULT_BATCH_SIZE)
        folder = self._new_folder()
        watched, result = self._run_task(alone, folder)
        if "error" in result:
            raise Permanent(result["error"])
        sizes = ", ".join(map(str, _best_sizes(result)))
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
        vectors = folder / "vectors.npy"
        try:
            agreement.check(contender.label, np.load(vectors), self._reference, self._n_rows)
        except Permanent as exc:
            return Outcome(error=str(exc))
        finally:
            vectors.unlink()
        began, ended = result["began"], result["ended"]
        padded = result["padded_tokens"] if contender.name == PENSTOCK else self._counts.padded_tokens(contender)
        return Outcome(
            seconds=ended - began,
            command_s=watched.seconds,
            device_use=watched.gpu_share(began, ended) if self._gpus else watched.cpu_share(began, ended, cores()),
            peak_bytes=watched.peak_bytes,
            gpu_peak_bytes=watched.gpu_peak_bytes,
            padded_tokens=padded,
            model_share=result.get("model_share"),
        )

    def _run_task(self, contender: Contender, folder: Path) -> tuple[watching.Watched, dict[str, Any]]:
        """Run a peer, the survey or the ceiling."""
        n_gpus = len(self._gpus)
        devices = [f"cuda:{i % n_gpus}" if n_gpus else "cpu" for i in range(contender.processes)]
        task: dict[str, Any] = {
            "name": contender.name,
            "corpus": str(self._corpus),
            "setup": {
                "model": self._plan.model,
                "devices": devices,
                "threads": contender.threads,
                "precision": contender.precision,
                "batch_size": contender.batch_size or DEFAULT_BATCH_SIZE,
            },
        }
        if contender.name == CEILING:
            task |= {"linears": self._work.linears, "attention": self._work.attention}
        (folder / "task.json").write_text(json.dumps(task))
        command = [sys.executable, "-P", "-m", "workers.bench.contender", str(folder)]
        watched = self._watch(command, folder, _thread_limits(contender.threads))
        result = folder / "result.json"
        if result.exists() and result.stat().st_size:
            return watched, json.loads(result.read_text())
        return watched, {"error": _ending(watched)}

    def _run_penstock(self, contender: Contender, folder: Path) -> tuple[watching.Watched, dict[str, Any]]:
        """Run the command as a person would, with as many slots and threads, and no text spared."""
        command = [
            *(sys.executable, "-P", "-m", "producer.cli", "encode", str(self._corpus), "--json", "--new"),
            *("--model", self._plan.model, "--out", str(folder / "vectors.npy"), "--no-deduplicate"),
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


def _best_sizes(survey: dict[str, Any]) -> list[int]:
    """Return the batch sizes that go into the rounds, the best one first."""
    seconds = survey["batch_seconds"]
    return sorted(BATCH_SIZES, key=lambda size: float(seconds[str(size)]))[:FINALISTS]


def _thread_limits(threads: int) -> dict[str, str]:
    """Return the variables that libraries read their number of threads from when they load."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    return {**dict.fromkeys(names, str(threads)), "TOKENIZERS_PARALLELISM": "false" if threads == 1 else "true"}


def _ending(watched: watching.Watched) -> str:
    if watched.status is None:
        return f"it hung for {watching.LIMIT_S:.0f} s and was ended"
    return describe(watched.status)
