"""What engines of all kinds do alike: which rows go together, and what happens when memory runs out.

A concrete engine says how rows are tokenised and how some of them go through the model.
"""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import numpy as np
import torch

from tasks.errors import DeviceFull
from tasks.options import EncodeOptions, ScoreOptions
from tasks.ports import Computed
from tasks.settings import Settings
from workers import budget
from workers.batching import cut_blocks
from workers.budget import TokenBudget
from workers.engines.blocks import NO_LIMIT, Block, Prepared
from workers.engines.fixed_shapes import FixedShapes
from workers.engines.outbox import Outbox
from workers.engines.packed_linear import pack_linears
from workers.engines.runtimes import PACKAGES as RUNTIMES
from workers.memory import DeviceMemory, SpreadMemory, device_name, is_out_of_memory
from workers.overlap import one_ahead
from workers.planning import SLOTS_VARIABLE
from workers.running import Ran, run_batches, run_patiently
from workers.sharding.crew import crew_of
from workers.sharding.group import planned_ranks
from workers.sharding.placing import is_spread
from workers.sharding.tensors import is_whole

R = TypeVar("R")
O = TypeVar("O", bound=EncodeOptions | ScoreOptions)  # noqa: E741 - the options

#: Libraries on which bits and speed depend.
PACKAGES = ("torch", "transformers", "sentence-transformers", "penstock")
#: Tokens of a row in a probe, as far as the model takes them: between sentences and pages.
PROBE_ROW_TOKENS = 128
#: Seconds between two times that free memory is given back to a CPU's host; each takes some 10 ms.
TIDY_S = 1.0
#: What probes are made of.
PROBE_TEXT = "It rained for a week, and the river rose above the road to the mill. " * 64
#: Where in that text the rows begin by which a fixed shape is tried.
PROBE_SHIFTS = (0, 3, 10, 16, 21, 31, 36, 46)


@dataclass(frozen=True)
class Loaded:
    """A loaded model, as far as batching needs to know it.

    Attributes:
        model: what computes; on a CPU its linear layers may be replaced.
        weights: content fingerprint.
        most: tokens of a row that it takes; ``NO_LIMIT`` at most.
        pads: whether a batch is padded to its longest row; the model then computes the padding too.
        can_pad_to: whether a batch can be padded to any length.
        numbers: their type.
        weight_bytes: memory of its weights; 0 if nobody counted.
        attention: the kernels for it.
    """

    model: torch.nn.Module
    weights: str
    most: int
    pads: bool
    can_pad_to: bool
    numbers: str
    attention: str
    weight_bytes: int = 0


class BatchedEngine(ABC, Generic[R, O]):
    """One loaded model on one device, for rows of one kind.

    ``_compute`` is what its public method calls. An engine sets what its hooks need before it calls ``__init__``, as
    that runs a few rows.

    Args:
        loaded: the model.
        device: ``cpu`` or ``cuda``.
        settings: of the worker.
    """

    #: The error of a row whose value is not finite.
    NOT_FINITE: ClassVar[str]

    def __init__(self, loaded: Loaded, device: str, settings: Settings) -> None:
        self._device = device
        self._tokenising = threading.Lock()
        self._most, self._pads = loaded.most, loaded.pads
        self._fixed_shapes = FixedShapes(device, loaded.most, self._run_probe, can_pad=loaded.can_pad_to)
        self.weights, self.weight_bytes = loaded.weights, loaded.weight_bytes
        self._crew = crew_of(loaded.model)
        if device == "cpu" and not settings.compile and is_whole(loaded.model):
            pack_linears(loaded.model, self._run_sample)
        memory = SpreadMemory if is_spread(device, settings) else DeviceMemory
        self._memory = memory(device, settings.memory_ratio, int(os.environ.get(SLOTS_VARIABLE, "1")))
        facts = _facts(loaded, device, settings)
        self.place = " ".join(facts.values())
        folder = settings.state_dir.expanduser() / "devices"
        if self._crew:
            self._crew.on_shortage = lambda: budget.keep_less(folder, facts, self._tokens_at_work)
        self._tokens_at_work = settings.max_batch_tokens or budget.LAST_PROBE
        self._budget = self._find_budget(settings, folder, facts)
        self._tidied_at = time.monotonic()

    @property
    def batch_tokens(self) -> int:
        """The token budget of a batch at this moment."""
        return self._budget.tokens

    @abstractmethod
    def check(self, options: O) -> str | None:
        """Say why this model cannot serve these options, or return None."""

    @abstractmethod
    def dim(self, options: O) -> int:
        """Return the length of a value."""

    @abstractmethod
    def _prepare(self, rows: Sequence[R], options: O, limit: int) -> Prepared:
        """Tokenise rows, cut at ``limit`` tokens. Called in a thread, while ``_forward`` has the block before."""

    @abstractmethod
    def _prepare_probe(self, texts: Sequence[str], limit: int) -> Prepared:
        """Make a row of the engine's own of each text, to try the device with: as many tokens as text and limit give.

        None of them may have an error.
        """

    @abstractmethod
    def _forward(self, prepared: Prepared, rows: np.ndarray, options: O | None, length: int | None) -> torch.Tensor:
        """Run rows as one batch.

        Args:
            prepared: what ``_prepare`` or ``_prepare_probe`` made.
            rows: (n_rows,) numbers of rows in it; one may be there several times.
            options: how; None for the engine's own rows.
            length: tokens that each row is padded to; None for the longest.

        Returns:
            (n_rows, dim) on the device.
        """

    @abstractmethod
    def _size(self, row: R) -> int:
        """Return the characters of a row."""

    def _cut(self, rows: Sequence[R], limit: int, batch_tokens: int) -> list[np.ndarray]:
        """Cut rows into blocks that are tokenised one after the other; as ``cut_blocks`` does it."""
        return cut_blocks([self._size(row) for row in rows], limit, batch_tokens)

    def _run_block(self, block: Block[O]) -> None:
        """Run a block's rows, as many at once as the budget allows.

        An engine that runs them otherwise does so through ``_batches``, so that it keeps to the budget as well.
        """
        rows = np.arange(len(block.rows))
        self._run_batches(
            block, rows, block.prepared.lengths, lambda batch: self._forward(block.prepared, batch, block.options, None)
        )

    def _run_batches(
        self, block: Block[O], rows: np.ndarray, lengths: np.ndarray, forward: Callable[[np.ndarray], torch.Tensor]
    ) -> None:
        """Do ``_batches``; a row for which the device has no memory is an error row."""
        for ran in self._batches(block, rows, lengths, forward):
            if ran.output is None:
                self._fail(block, rows[ran.rows])

    def _batches(
        self, block: Block[O], rows: np.ndarray, lengths: np.ndarray, forward: Callable[[np.ndarray], torch.Tensor]
    ) -> Iterator[Ran[bool]]:
        """Run rows of a block in batches as large as the budget, smaller ones when memory runs out.

        Args:
            block: where they are.
            rows: (n_rows,) their numbers in it.
            lengths: (n_rows,) tokens that each of them costs.
            forward: runs the rows of these numbers as one batch: (n_batch,) -> (n_batch, dim) on the device.

        Yields:
            Each batch that was run, by places in ``rows``; without an output if a single row found no memory.
        """

        def run(batch: np.ndarray) -> bool:
            self._tokens_at_work = self._budget.tokens
            block.outbox.send(block.rows[rows[batch]], forward(rows[batch]))  # here, because it takes memory too
            return True

        for ran in run_batches(lengths, self._budget, run, block.on_batch, pads=self._pads):
            if ran.output is not None:
                block.result.padded_tokens += ran.tokens
            yield ran

    def _compute(self, rows: Sequence[R], options: O, on_batch: Callable[[int], None]) -> Computed:
        """Compute rows in their order."""
        n_rows = len(rows)
        result = Computed(
            values=np.zeros((n_rows, self.dim(options)), np.float32),
            n_tokens=np.zeros(n_rows, np.int32),
            truncated=np.zeros(n_rows, bool),
            errors=[None] * n_rows,
        )
        run = self._run_fixed if options.reproducible else self._run_block
        shortages = self._budget.shortages
        outbox = Outbox(self._device, lambda places, values: self._put(result, places, values))
        for block in self._tokenised(rows, options, on_batch, result, outbox):
            started = time.perf_counter()
            run(block)
            result.model_s += time.perf_counter() - started
        started = time.perf_counter()
        outbox.empty()
        result.model_s += time.perf_counter() - started
        result.memory_splits = self._budget.shortages - shortages
        self._tidy()
        return result

    def _tokenised(
        self, rows: Sequence[R], options: O, on_batch: Callable[[int], None], result: Computed, outbox: Outbox
    ) -> Iterator[Block[O]]:
        """Yield blocks of rows, each tokenised while the one before is in the model."""
        limit = min(options.max_tokens or NO_LIMIT, self._most)

        def prepare(places: np.ndarray) -> Block[O]:
            started = time.perf_counter()
            with self._tokenising:
                prepared = self._prepare([rows[i] for i in places], options, limit)
            result.n_tokens[places] = prepared.lengths
            result.truncated[places] = prepared.truncated
            if prepared.errors:
                for i, error in prepared.errors.items():
                    result.errors[places[i]] = error
                sound = np.array([i for i in range(len(places)) if i not in prepared.errors], np.int64)
                places, prepared = places[sound], prepared.take(sound)
            result.tokenise_s += time.perf_counter() - started
            return Block(places, prepared, options, on_batch, result, outbox)

        # In fixed shapes, rows of one length fill a batch only if they are together.
        least = NO_LIMIT if options.reproducible else self._budget.tokens
        yield from one_ahead(self._cut(rows, limit, least), prepare)

    def _run_fixed(self, block: Block[O]) -> None:
        """Run rows in batches of fixed shapes, which cannot be halved."""

        def run(batch: np.ndarray, length: int) -> np.ndarray:
            return _fetch(self._forward(block.prepared, batch, block.options, length))

        for batch, length in self._fixed_shapes.plan(block.prepared.lengths):
            tokens = self._fixed_shapes.cost(len(batch), length)
            block.on_batch(tokens)
            values = run_patiently(lambda: self._fixed_shapes.run(batch, length, run), self._budget)  # noqa: B023
            if values is None:
                self._fail(block, batch)
            else:
                self._put(block.result, block.rows[batch], values)
                block.result.padded_tokens += tokens

    def _put(self, result: Computed, places: np.ndarray, values: np.ndarray) -> None:
        """Take the values of rows, (n_rows, dim) float32."""
        result.values[places] = values
        for i in places[~np.isfinite(values).all(axis=1)]:
            result.errors[i] = self.NOT_FINITE
            result.values[i] = 0.0

    def _fail(self, block: Block[O], batch: np.ndarray) -> None:
        """Make rows error rows for which the device has no memory.

        Raises:
            DeviceFull: it has none for a few words either, which is no fault of these rows.
        """
        try:
            self._run_sample()
        except Exception as exc:
            if is_out_of_memory(exc):
                raise DeviceFull from exc
            raise
        for i in block.rows[batch]:
            block.result.errors[i] = f"the device has no memory for this row's {block.result.n_tokens[i]} tokens"

    def _tidy(self) -> None:
        """Give back free memory now and then: batches of all shapes leave it in ever more pieces."""
        if self._device == "cpu" and time.monotonic() - self._tidied_at >= TIDY_S:
            self._memory.release()
            self._tidied_at = time.monotonic()

    def _probe(self, texts: Sequence[str], limit: int) -> Prepared:
        """Do ``_prepare_probe``. A tokenizer keeps its limit between calls, and its thread may be at work with it."""
        with self._tokenising:
            return self._prepare_probe(texts, limit)

    def _run_sample(self) -> torch.Tensor:
        """Run a few rows of different lengths. Returns (n_rows, dim)."""
        prepared = self._probe([PROBE_TEXT[:200], PROBE_TEXT[:80], PROBE_TEXT[:10]], self._most)
        return self._forward(prepared, np.arange(3), None, None)

    def _run_probe(self, rows: np.ndarray, length: int) -> np.ndarray:
        """Run rows of the engine's own, padded to a length. Returns (n_rows, dim)."""
        prepared = self._probe([PROBE_TEXT[shift:] for shift in PROBE_SHIFTS], length)
        return _fetch(self._forward(prepared, rows % len(PROBE_SHIFTS), None, length))

    def _find_budget(self, settings: Settings, folder: Path, facts: dict[str, str]) -> TokenBudget:
        """Take the budget that is set, or the one that this model has on this device."""
        # A group of ranks that had no memory for a batch ended, and this one follows it.
        most = budget.kept_after_shortage(folder, facts) if self._crew else budget.LAST_PROBE
        if settings.max_batch_tokens:
            return TokenBudget(min(most, settings.max_batch_tokens), self._memory)
        prepared = self._probe([PROBE_TEXT], min(PROBE_ROW_TOKENS, self._most))
        length = max(1, int(prepared.lengths[0]))

        def run(tokens: int) -> None:
            self._tokens_at_work = tokens
            self._forward(prepared, np.zeros(max(1, tokens // length), np.int64), None, None).float().cpu()

        found = budget.find(folder, facts, run, self._memory, most)  # more would end the ranks again
        return TokenBudget(min(most, found.tokens), self._memory, found.bytes_per_token)


def _fetch(values: torch.Tensor) -> np.ndarray:
    """Return (n_rows, dim) float32 from the device."""
    return values.float().cpu().numpy()


def _facts(loaded: Loaded, device: str, settings: Settings) -> dict[str, str]:
    """Return what the speed and the bits of an engine depend on."""
    return {
        "weights": loaded.weights,
        "device": device_name(device),
        "threads": str(torch.get_num_threads()),
        "numbers": loaded.numbers,
        "attention": loaded.attention,
        "pads": str(loaded.pads),
        "backend": settings.backend,
        "compile": str(settings.compile),
        **({} if is_whole(loaded.model) else {"shard": f"{settings.shard} {planned_ranks()}"}),
        **{package: version(package) for package in (*PACKAGES, *RUNTIMES.get(settings.backend, ()))},
    }
