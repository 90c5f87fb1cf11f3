"""How LASER's official package is run: alone as it comes, from a pool of threads, and from a pool of processes.

    python -m tests.benchmarks.laser_peers WAY WORKERS FOLDER

WAY is ``pipeline``, ``threads`` or ``processes``. FOLDER has the model's files in ``model`` and the sentences, one a
line, in ``corpus.txt``; ``values.npy`` and ``peer.json`` there say what came of it.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

#: Sentences that a pool's workers take at once. The package runs them one by one, so their number matters little.
PART = 100
#: Seconds until all processes of a pool must have their models.
LOAD_S = 600.0

logging.getLogger().addHandler(logging.NullHandler())  # else the package logs every file


def main() -> None:
    """Load, encode, write down vectors and times."""
    way, n_workers, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    sentences = (folder / "corpus.txt").read_text("utf-8").splitlines()
    began, ended, vectors, loads = WAYS[way](sentences, n_workers, str(folder / "model"))
    np.save(folder / "values.npy", vectors)
    (folder / "peer.json").write_text(json.dumps({"began": began, "ended": ended, "loads": loads}))


def load(model: str) -> Any:
    """Load LASER2 as the package's README does."""
    from laser_encoders import LaserEncoderPipeline

    return LaserEncoderPipeline(laser="laser2", model_dir=model)


Found = tuple[float, float, np.ndarray, int]


def run_pipeline(sentences: list[str], _: int, model: str) -> Found:
    """Give the package all sentences in one call."""
    encode = load(model).encode_sentences
    return *_timed(lambda: encode(sentences)), 1


def run_threads(sentences: list[str], n_workers: int, model: str) -> Found:
    """Give it parts of them from several threads, which share the model."""
    encode = load(model).encode_sentences
    with ThreadPoolExecutor(n_workers) as pool:
        return *_timed(lambda: np.vstack(list(pool.map(encode, _parts(sentences))))), 1


def run_processes(sentences: list[str], n_workers: int, model: str) -> Found:
    """Give parts to several processes, which have a model each before the clock starts."""
    context = multiprocessing.get_context("spawn")
    all_ready = context.Barrier(n_workers + 1)
    with ProcessPoolExecutor(n_workers, context, _begin, (model, all_ready)) as pool:
        for _ in range(n_workers):
            pool.submit(int)  # processes start when there is something to do
        all_ready.wait(LOAD_S)
        return *_timed(lambda: np.vstack(list(pool.map(_encode, _parts(sentences))))), n_workers


WAYS: dict[str, Callable[[list[str], int, str], Found]] = {
    "pipeline": run_pipeline,
    "threads": run_threads,
    "processes": run_processes,
}

#: In a process of a pool: its model.
_own: list[Any] = []


def _begin(model: str, all_ready: Any) -> None:
    _own.append(load(model))
    all_ready.wait(LOAD_S)


def _encode(sentences: list[str]) -> np.ndarray:
    return _own[0].encode_sentences(sentences)


def _parts(sentences: list[str]) -> list[list[str]]:
    return [sentences[start : start + PART] for start in range(0, len(sentences), PART)]


def _timed(run: Callable[[], np.ndarray]) -> tuple[float, float, np.ndarray]:
    began = time.time()
    vectors = run()
    return began, time.time(), vectors


if __name__ == "__main__":
    main()
