"""What a bench is about: the work that is compared, who does it, and how it is counted. There is one an operation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.options import Operation
from workers.bench.figures import Outcome, Runs
from workers.bench.plan import BenchPlan, Contender
from workers.bench.showing import Layout


class Subject(ABC):
    """One operation, as the rounds need it.

    Attributes:
        operation: the command of penstock's that does it.
        layout: how the figures are shown.
        plan: the options.
    """

    operation: Operation
    layout: Layout
    plan: BenchPlan

    @abstractmethod
    def prepare(self, folder: Path) -> None:
        """Have the rows where all contenders read them; what is made up goes into the folder."""

    @abstractmethod
    def precisions(self, *, on_gpu: bool) -> tuple[str, ...]:
        """Return the precisions in which all are compared."""

    @abstractmethod
    def learn(self, surveys: dict[str, dict[str, Any]]) -> None:
        """Take what the survey of each precision found."""

    @abstractmethod
    def contenders(self, precision: str, batch_sizes: Sequence[int]) -> list[Contender]:
        """Return who is compared in one precision; the batch sizes are sentence-transformers' best ones."""

    def is_reference(self, contender: Contender) -> bool:  # noqa: ARG002 - the survey may have it
        """Whether the first run of this contender is what all others are checked against."""
        return False

    @abstractmethod
    def task(self, contender: Contender) -> dict[str, Any]:
        """Return what the process of a peer is told, beside its setup."""

    def setup(self) -> dict[str, Any]:
        """Return what the setup of a peer has beside ``ways.Setup``."""
        return {}

    @abstractmethod
    def command(self) -> list[str]:
        """Return penstock's command for the rows, without the options that all operations have."""

    @abstractmethod
    def check(self, contender: Contender, values: np.ndarray) -> dict[str, Any]:
        """Compare what a contender computed with the reference. Returns the figures of that, if there are any.

        Raises:
            Permanent: it is something else, so speeds do not compare.
        """

    def padded_tokens(self, contender: Contender) -> int | None:  # noqa: ARG002 - not every peer's are known
        """Return the tokens that a peer runs through the model, padding included, if that is known."""
        return None

    @abstractmethod
    def speed(self, outcome: Outcome) -> str:
        """Say how fast a run was."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what the JSON file says of the rows."""

    @abstractmethod
    def summarise(self, runs: Runs) -> list[dict[str, Any]]:
        """Return one row of the table for each contender."""
