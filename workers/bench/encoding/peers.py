"""The peers: ways of encoding a corpus with sentence-transformers, each warm before it is timed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import psutil
import torch
from sentence_transformers import SentenceTransformer

from tasks import weights
from tasks.errors import ModelNotFound, Permanent
from tasks.messages import ModelSpec
from workers.bench import ways
from workers.bench.encoding.plan import rows_of_a_piece
from workers.bench.ways import LOAD_S, Begin, Run, Setup, Timed, Way, time_rows
from workers.engines.precision import DTYPES

#: Rows that each process runs before it is timed.
WARM_ROWS = 32
#: Seconds without work after which a process of the pool counts as loaded.
IDLE_S = 1.0


def load(setup: Setup, device: str) -> SentenceTransformer:
    """Load the model as a person would who knows how: in the wanted precision, for inference.

    Raises:
        ModelNotFound: its files are not there or cannot be read.
    """
    spec = ModelSpec.parse(setup.model)
    place, dtype = weights.locate(spec), DTYPES[setup.precision]
    try:
        model = SentenceTransformer(place, revision=spec.revision, device=device, model_kwargs={"dtype": dtype})
    except (OSError, ValueError, KeyError) as exc:
        reason = str(exc).strip().split("\n", 1)[0]
        raise ModelNotFound(f"--model {spec} cannot be loaded: {reason}", model=str(spec)) from exc
    return model.eval()


def run(name: str, setup: Setup, texts: list[str]) -> Timed:
    """Load a peer, warm it up, and time one encoding of the texts."""
    if name == "ray":
        return _run_ray(setup, texts)
    return time_rows(_WAYS[name](setup, begin), texts, n_warm=WARM_ROWS * setup.processes)


def begin(setup: Setup, device: str) -> Run:
    """Load the model and return its ``encode``."""
    model = load(setup, device)
    return lambda texts: model.encode(texts, batch_size=setup.batch_size)


@contextmanager
def _pool(setup: Setup, begin: Begin[Setup]) -> Iterator[Run]:  # noqa: ARG001 - its processes load by themselves
    """The pool of sentence-transformers itself."""
    model = load(setup, "cpu")
    pool = model.start_multi_process_pool(list(setup.devices))
    try:
        _wait_until_idle([process.pid for process in pool["processes"]])
        yield lambda texts: model.encode(texts, pool=pool, batch_size=setup.batch_size)
    finally:
        model.stop_multi_process_pool(pool)


_WAYS: dict[str, Way[Setup]] = {
    "sentence-transformers": ways.alone,
    "pool": _pool,
    "threads": ways.threads,
    "processes": ways.processes,
}


def _wait_until_idle(pids: list[int]) -> None:
    """Wait until processes have loaded all that they load: those of the pool tell nobody when they are ready.

    Raises:
        Permanent: they are still busy when their time is over.
    """
    deadline = time.monotonic() + LOAD_S
    spent = [0.0] * len(pids)
    while time.monotonic() < deadline:
        time.sleep(IDLE_S)
        now = [sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids]
        if now == spent:
            return
        spent = now
    raise Permanent(f"the pool's processes were still loading after {LOAD_S:.0f} s")


class _RayActor:
    """A process of Ray Data, with a model of its own."""

    def __init__(self, setup: Setup, device: str) -> None:
        torch.set_num_threads(setup.threads)
        self._model = load(setup, device)
        self._batch_size = setup.batch_size

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        began = time.time()
        vectors = self._model.encode(list(batch["text"]), batch_size=self._batch_size)
        times = np.full(len(vectors), began), np.full(len(vectors), time.time())
        return {"row": batch["row"], "vector": vectors, "began": times[0], "ended": times[1]}


def _run_ray(setup: Setup, texts: list[str]) -> Timed:
    """Ray Data: ``map_batches`` over a pool of actors. The time is from the first batch's begin to the last one's end.

    Its actors live as long as one run of the dataset, so there is no warming up but for their loading.
    """
    import ray

    is_on_gpu = setup.devices[0] != "cpu"
    ray.init(
        num_cpus=setup.processes * setup.threads,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": str(setup.threads)}},
    )
    try:
        ray.data.DataContext.get_current().wait_for_min_actors_s = LOAD_S
        rows = ray.data.from_items([{"row": i, "text": text} for i, text in enumerate(texts)]).map_batches(
            _RayActor,
            fn_constructor_args=(setup, "cuda" if is_on_gpu else "cpu"),
            batch_size=rows_of_a_piece(len(texts), setup.processes),
            compute=ray.data.ActorPoolStrategy(size=setup.processes),
            num_cpus=setup.threads,
            num_gpus=len(set(setup.devices)) / setup.processes if is_on_gpu else None,
        )
        found = sorted(rows.take_all(), key=lambda row: int(row["row"]))
    finally:
        ray.shutdown()
    return Timed(
        np.stack([row["vector"] for row in found]),
        min(float(row["began"]) for row in found),
        max(float(row["ended"]) for row in found),
    )
