"""What the receipts of a job come to. Memory grows with the slots that worked on it, not with its chunks."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from producer.reporting.binning import LengthBins, Quantiles, TimeBins
from producer.reporting.receipts import Told
from tasks.messages import Receipt

#: Slowest chunks, results that cannot be read, and ranges of chunks without a result, that are kept by name.
MOST_SLOWEST = 20
MOST_PROBLEMS = 20
MOST_GAPS = 20
#: Chunks of a slot that are kept one by one; of a slot with more, only the bins are.
MOST_SPANS = 500
#: Unix times that a claim may have, from the year 2000 to 2100; other ones come of a clock that was never set.
POSSIBLE_S = (946_684_800.0, 4_102_444_800.0)


@dataclass(frozen=True)
class Span:
    """A chunk in the hands of a slot, by the slot's clock."""

    start_s: float
    end_s: float
    model_s: float


@dataclass(frozen=True, order=True)
class Straggler:
    """A chunk that took long; ordered by how long."""

    wall_s: float
    chunk: int
    slot: str = field(compare=False)
    rows: int = field(compare=False)
    tokens: int = field(compare=False)
    model_s: float = field(compare=False)


@dataclass
class Totals:
    """Sums over receipts."""

    chunks: int = 0
    rows: int = 0
    failed_rows: int = 0
    truncated_rows: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    duplicate_rows: int = 0
    cached_rows: int = 0
    memory_splits: int = 0
    read_s: float = 0.0
    tokenise_s: float = 0.0
    model_s: float = 0.0
    idle_s: float = 0.0

    def add(self, receipt: Receipt) -> None:
        """Add one chunk's."""
        self.chunks += 1
        for name in vars(self):
            if name != "chunks":
                setattr(self, name, getattr(self, name) + getattr(receipt, name))

    @property
    def known_s(self) -> float:
        """Seconds of slots that are accounted for: each was with the model, or without."""
        return self.model_s + self.idle_s

    @property
    def idle_share(self) -> float | None:
        """Share of those seconds without model work; None if nothing is known."""
        return self.idle_s / self.known_s if self.known_s else None


@dataclass
class SlotTally:
    """What one slot did.

    Attributes:
        loads: times that its process loaded the weights.
        least_batch_tokens, most_batch_tokens: between which its token budget was.
        first_s, last_s: its first claim and its last result.
        spans: its chunks, unless they are more than MOST_SPANS.
        held, model: seconds that it had a chunk, and in the model, over time.
    """

    name: str
    totals: Totals = field(default_factory=Totals)
    loads: int = 0
    least_batch_tokens: int = 0
    most_batch_tokens: int = 0
    first_s: float = float("inf")
    last_s: float = float("-inf")
    spans: list[Span] | None = field(default_factory=list)
    held: TimeBins = field(default_factory=TimeBins)
    model: TimeBins = field(default_factory=TimeBins)

    def add(self, receipt: Receipt) -> None:
        """Count a chunk of this slot."""
        self.totals.add(receipt)
        self.loads = max(self.loads, receipt.loads)
        if receipt.batch_tokens:
            self.least_batch_tokens = min(self.least_batch_tokens or receipt.batch_tokens, receipt.batch_tokens)
            self.most_batch_tokens = max(self.most_batch_tokens, receipt.batch_tokens)
        if not has_times(receipt):
            return
        span = Span(receipt.started_s, receipt.started_s + receipt.wall_s, receipt.model_s)
        self.first_s, self.last_s = min(self.first_s, span.start_s), max(self.last_s, span.end_s)
        self.held.add(span.start_s, span.end_s, receipt.wall_s)
        self.model.add(span.start_s, span.end_s, min(receipt.model_s, receipt.wall_s))
        if self.spans is not None:
            self.spans.append(span)
            if len(self.spans) > MOST_SPANS:
                self.spans = None

    @property
    def node(self) -> str:
        """The node that it belongs to."""
        return self.name.rpartition("/")[0] or self.name

    @property
    def host(self) -> str:
        """The machine of its node."""
        return self.node.rpartition("@")[2]

    @property
    def order(self) -> tuple[list[tuple[int, str]], ...]:
        """Slots of a machine together, those of a node by their number, and 9 before 10."""
        return _natural(self.host), _natural(self.name)


class Tally:
    """What the receipts of a job come to.

    Attributes:
        totals: over all receipts.
        computed: over those of chunks of which every row went through the model; only there is the padding known.
        untimed: receipts without a claim's time, as earlier releases wrote them.
        problems: what is wrong with the first results that cannot be read; ``n_problems`` of all.
        next_chunk: the chunk after the last one that has a result; gaps: the first ranges of chunks before without one,
            each with its last chunk.
    """

    def __init__(self) -> None:
        self.totals = Totals()
        self.computed = Totals()
        self.slots: dict[str, SlotTally] = {}
        self.tokens = TimeBins()
        self.walls = Quantiles()
        self.lengths = LengthBins()
        self.length_chunks = 0
        self.untimed = 0
        self.problems: list[str] = []
        self.n_problems = 0
        self.next_chunk = 0
        self.gaps: list[tuple[int, int]] = []
        self._slowest: list[Straggler] = []

    @classmethod
    def of(cls, told: Iterable[Told]) -> Tally:
        """Count all."""
        tally = cls()
        for one in told:
            tally.add(one)
        return tally

    def add(self, told: Told) -> None:
        """Count what the result of a chunk tells; chunks come in their order."""
        self._note_gap(told.record.chunk)
        receipt = told.receipt
        if receipt is None:
            self.n_problems += 1
            if len(self.problems) < MOST_PROBLEMS:
                self.problems.append(told.problem)
            return
        self.totals.add(receipt)
        if not receipt.duplicate_rows and not receipt.cached_rows and not receipt.failed_rows:
            self.computed.add(receipt)
        self.slots.setdefault(receipt.slot, SlotTally(receipt.slot)).add(receipt)
        if told.lengths is not None:
            self.length_chunks += 1
            self.lengths.add(told.lengths.tokens, told.lengths.truncated)
        if not has_times(receipt):
            self.untimed += 1
            return
        self.tokens.add(receipt.started_s, receipt.started_s + receipt.wall_s, receipt.tokens)
        self.walls.add(receipt.wall_s)
        self._note_slow(told.record.chunk, receipt)

    @property
    def slowest(self) -> list[Straggler]:
        """The slowest chunks, the slowest first."""
        return sorted(self._slowest, reverse=True)

    @property
    def first_s(self) -> float:
        """The first claim; infinite if no receipt has times."""
        return min((slot.first_s for slot in self.slots.values()), default=float("inf"))

    @property
    def last_s(self) -> float:
        """The last result."""
        return max((slot.last_s for slot in self.slots.values()), default=float("-inf"))

    @property
    def span_s(self) -> float:
        """Seconds from the first claim to the last result, by the slots' clocks; 0 if nothing is known."""
        return max(0.0, self.last_s - self.first_s) if np.isfinite(self.first_s) else 0.0

    @property
    def hosts(self) -> set[str]:
        """The machines that worked on the job."""
        return {slot.host for slot in self.slots.values()}

    @property
    def padding_share(self) -> float | None:
        """Share of the tokens in the model that were padding, where that is known; else None."""
        padded, tokens = self.computed.padded_tokens, self.computed.tokens
        return 1 - tokens / padded if padded >= tokens and padded else None

    def ordered_slots(self) -> list[SlotTally]:
        """Return the slots, those of a machine together."""
        return sorted(self.slots.values(), key=lambda slot: slot.order)

    def _note_gap(self, chunk: int) -> None:
        if chunk > self.next_chunk and len(self.gaps) < MOST_GAPS:
            self.gaps.append((self.next_chunk, chunk - 1))
        self.next_chunk = chunk + 1

    def _note_slow(self, chunk: int, receipt: Receipt) -> None:
        slow = Straggler(receipt.wall_s, chunk, receipt.slot, receipt.rows, receipt.tokens, receipt.model_s)
        if len(self._slowest) < MOST_SLOWEST:
            heapq.heappush(self._slowest, slow)
        else:
            heapq.heappushpop(self._slowest, slow)


def _natural(name: str) -> list[tuple[int, str]]:
    """Return the key by which people sort names with numbers in them."""
    return [(int(part), "") if i % 2 else (-1, part) for i, part in enumerate(re.split(r"([0-9]{1,18})", name))]


def has_times(receipt: Receipt) -> bool:
    """Whether a receipt says when its chunk was claimed."""
    return POSSIBLE_S[0] <= receipt.started_s <= POSSIBLE_S[1] and receipt.wall_s <= POSSIBLE_S[1]
