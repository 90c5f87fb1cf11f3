"""The process group of a slot's ranks, all of them on this machine."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from workers.planning import RANKS_VARIABLE

#: Seconds that a rank waits for another within a call. One may load a model much later than another from a busy disk;
#: a hang is found by the slot's own time limits, and between calls nobody waits for a collective.
CALL_S = 7200.0
#: What the ranks meet over: nothing that is reached from other machines.
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


def planned_ranks() -> int:
    """Return how many ranks the plan gives this slot."""
    return int(os.environ.get(RANKS_VARIABLE, "1"))


def join_group(rank: int, n_ranks: int, meeting: Path, device: str, call_s: float = CALL_S) -> None:
    """Become one of the ranks; wait for the others. NCCL and GPUs not yet run.

    Args:
        rank: this one's number, and that of its GPU among those that are visible.
        n_ranks: how many there are.
        meeting: a file of their own by which they find each other.
        device: ``cpu`` or ``cuda``.
        call_s: seconds that they wait for each other at most.
    """
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n_ranks)}  # transformers looks there
    os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", LOOPBACK)
    own = None
    if device != "cpu":
        torch.cuda.set_device(rank)  # from now on "cuda" means this one
        own = torch.device("cuda", rank)
    timeout = timedelta(seconds=call_s)
    # By name: of a folder with a space in it, torch does not read the URL.
    store = dist.FileStore(str(meeting), n_ranks)  # type: ignore[attr-defined]
    store.set_timeout(timeout)
    dist.init_process_group(
        "gloo" if device == "cpu" else "nccl",
        store=store,
        rank=rank,
        world_size=n_ranks,
        timeout=timeout,
        device_id=own,
    )


class Dealing:
    """Which rows of a batch each rank runs.

    With tensor parallelism all ranks have a part in every row. With FSDP each rank runs rows of its own, or all would
    compute the same.

    Args:
        splits: whether rows are dealt out.
    """

    def __init__(self, *, splits: bool) -> None:
        self._splits = splits and dist.is_initialized()

    def own(self, n_rows: int) -> np.ndarray:
        """Return the rows of this rank, (n_own,): as many for each rank; some are run twice if they do not go round."""
        rows = np.arange(n_rows)
        if not self._splits:
            return rows
        n_ranks = dist.get_world_size()
        return np.resize(rows, -(-n_rows // n_ranks) * n_ranks)[dist.get_rank() :: n_ranks]

    def together(self, values: torch.Tensor, n_rows: int) -> torch.Tensor:
        """Return the values of all rows, (n_rows, dim), from those of each rank's own, (n_own, dim)."""
        if not self._splits:
            return values
        parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, values.contiguous())
        return torch.stack(parts, dim=1).flatten(0, 1)[:n_rows]
