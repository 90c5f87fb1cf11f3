"""Which nodes and slots a machine gets: processes on each device, threads of each process, and why.

Nothing here imports torch: the plan is made before the libraries load, because they read their thread counts and
visible devices when they do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tasks.errors import UsageError
from tasks.messages import ModelSpec
from tasks.settings import MIB, Settings
from workers.devices import Device, find_devices, find_joined, join
from workers.idleness import NOTE_VARIABLE, Idleness, note_path
from workers.model_size import count_in_blocks, count_parameters
from workers.sharding.choosing import PARTED, check_shard
from workers.widths import NUMBER_BYTES, quantised_bytes

#: Memory of a slot beside its weights: Python, torch, transformers and buffers. Measured with MiniLM's 87 MiB, pages
#: that slots share parted among them: 480 to 550 MiB for all when it starts, and up to 240 MiB more for kernels of
#: oneDNN's once batches of all shapes were there.
SLOT_BYTES = 620 * MIB
#: The same for the fake engine, which imports no torch.
FAKE_SLOT_BYTES = 80 * MIB
#: Memory of a GPU that a slot takes beside its weights: CUDA's context, libraries, batches. An estimate, not measured.
CUDA_SLOT_BYTES = 2048 * MIB

#: Parameters that one process needs to keep a GPU busy: with fewer, tokenising and launching kernels take longer than
#: the kernels. And the most processes before it was measured what they do. Rules of thumb, not measured.
FILLING_PARAMETERS = 250_000_000
MOST_AT_FIRST = 4
#: Idle share of a GPU above which the next start gets a process more.
IDLE_SHARE = 0.1

#: Tells a slot how many share its device.
SLOTS_VARIABLE = "PENSTOCK_SLOTS_OF_DEVICE"
#: Tells a slot how many processes it is parted among.
RANKS_VARIABLE = "PENSTOCK_RANKS"


@dataclass(frozen=True)
class NodePlan:
    """One node: its device, slots and threads per slot.

    Attributes:
        slot_bytes: memory of the device that a slot is expected to take.
        slots_why: what decided the number of slots; ``threads_why`` and ``slot_bytes_why`` likewise.
        note: where the node notes how idle its device is; None on a CPU.
        ranks: processes that a slot is parted among.
    """

    device: Device
    slots: int
    threads: int
    slot_bytes: int = 0
    slots_why: str = ""
    threads_why: str = ""
    slot_bytes_why: str = ""
    note: Path | None = None
    ranks: int = 1

    def environment(self) -> dict[str, str]:
        """Return what must stand in the environment before Python starts."""
        threads = str(self.threads)
        variables = {
            # Of OpenMP, with which torch computes; Arrow, too, takes it for its own threads.
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            # As torch sets it when it is told a number of threads: MKL would otherwise change it from call to call.
            "MKL_DYNAMIC": "FALSE",
            "OPENBLAS_NUM_THREADS": threads,
            "RAYON_NUM_THREADS": threads,
            # Kernels that oneDNN keeps whole, 0.3 MB and more each; to make one anew costs too little to be measured.
            "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
            # Otherwise tokenizers warns and turns itself off when a process forks.
            "TOKENIZERS_PARALLELISM": "false" if self.threads == 1 else "true",
            "PENSTOCK_SHOWN_DEVICE": self.device.name,
            SLOTS_VARIABLE: str(self.slots),
            # By UUID, because with MIG the numbers that CUDA gives are not nvidia-smi's.
            "CUDA_VISIBLE_DEVICES": self.device.uuid,
        }
        if not self.device.is_cpu:
            variables["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # a number that a model's code names is nvidia-smi's, too
        if self.ranks > 1:
            variables[RANKS_VARIABLE] = str(self.ranks)
        if self.note is not None:
            variables[NOTE_VARIABLE] = str(self.note)
        return variables


def plan_nodes(settings: Settings, spec: ModelSpec) -> list[NodePlan]:
    """Return one node per device.

    Raises:
        UsageError: a device that is not there, or not of a known form; or a driver that fails.
        ModelNotFound: the model's folder or package is not there.
    """
    parameters = count_parameters(spec)
    if settings.shard:
        return [_plan_sharded(settings, spec, parameters)]
    devices = find_devices(settings)
    return [
        _Planning(settings, spec, parameters, device).plan(
            None if settings.workers is None else len(range(index, settings.workers, len(devices)))
        )
        for index, device in enumerate(devices)
    ]


def _plan_sharded(settings: Settings, spec: ModelSpec, parameters: int | None) -> NodePlan:
    """Plan one slot over all devices."""
    check_shard(settings, spec)
    is_parted = settings.shard in PARTED
    anywhere = settings.model_copy(update={"workers": None})  # the one slot is not on the first device alone
    devices = find_joined(anywhere) if is_parted else find_devices(anywhere)
    ranks = len(devices) if is_parted else 1
    if is_parted and ranks == 1:
        raise UsageError(
            f"--shard {settings.shard} parts a model among several devices, and there is {devices[0]} alone. Name more "
            "with --devices, or leave --shard out."
        )
    device = join(devices) if len(devices) > 1 else devices[0]
    planning = _Planning(
        settings, spec, parameters, device, parts=1 if device.is_cpu and not is_parted else len(devices)
    )
    threads, why = max(1, device.cores // ranks), f"{_cores(device.cores)} / {ranks} process{'es' * (ranks > 1)}"
    if settings.threads_per_process is not None:
        threads, why = settings.threads_per_process, "as asked for"
    return NodePlan(
        device,
        1,
        threads,
        slot_bytes=planning.slot_bytes,
        slots_why=f"--shard {settings.shard}" + (f", {ranks} processes" if is_parted else ""),
        threads_why=why,
        slot_bytes_why=planning.slot_bytes_why,
        ranks=ranks,
    )


@dataclass(frozen=True)
class _Planning:
    """The planning of one node. A model may be in several parts, one on each of its devices."""

    settings: Settings
    spec: ModelSpec
    parameters: int | None
    device: Device
    parts: int = 1

    def plan(self, share: int | None) -> NodePlan:
        """Decide, for a device that gets this share of --workers."""
        slots, slots_why = self._slots(share)
        threads, threads_why = max(1, self.device.cores // slots), f"{_cores(self.device.cores)} / {_slots(slots)}"
        if self.settings.threads_per_process is not None:
            threads, threads_why = self.settings.threads_per_process, "as asked for"
        return NodePlan(
            self.device,
            slots,
            threads,
            slot_bytes=self.slot_bytes,
            slots_why=slots_why,
            threads_why=threads_why,
            slot_bytes_why=self.slot_bytes_why,
            note=None
            if self.device.is_cpu or self.settings.processes_per_device
            else note_path(self.settings, self.spec, self.device.title),
        )

    def _slots(self, share: int | None) -> tuple[int, str]:
        if share is not None:
            return share, f"its share of --workers {self.settings.workers}"
        if self.settings.processes_per_device is not None:
            return self.settings.processes_per_device, "as asked for"
        cores = self.device.cores
        if self.device.is_cpu:
            threads = self.settings.threads_per_process or 1
            slots, why = max(1, cores // threads), f"{_cores(cores)} / {threads} thread{'s' * (threads > 1)}"
        else:
            slots, why = self._filling()
            if slots > cores:
                slots, why = cores, f"no more than {_cores(cores)}"
        most = self._most_by_memory
        return (slots, why) if most is None or slots <= most else (max(1, most), "no more by memory")

    def _filling(self) -> tuple[int, str]:
        """Return how many processes keep a GPU busy: as measured, or by the model's size."""
        path = note_path(self.settings, self.spec, self.device.title)
        if (measured := Idleness.read(path)) is not None:
            more = measured.idle_share > IDLE_SHARE
            return measured.processes + more, f"{measured.processes} left it {measured.idle_share:.0%} idle"
        if not self.parameters:
            return 1, "the model's size is not known yet" if self.parameters is None else "the fake engine uses no GPU"
        slots = max(1, min(MOST_AT_FIRST, FILLING_PARAMETERS // self.parameters))
        size = f"{self.parameters / 1e6:.0f} million parameters"
        return slots, f"{size} {'fill it' if slots == 1 else 'do not fill it in one process'}"

    @property
    def slot_bytes(self) -> int:
        """Memory that a slot takes of a device."""
        if self.spec.engine == "fake":
            return FAKE_SLOT_BYTES if self.device.is_cpu else 0
        return (
            (SLOT_BYTES if self.device.is_cpu else CUDA_SLOT_BYTES)
            + self._parameter_bytes * ((self.parameters or 0) // self.parts)
            - self._saved_bytes
        )

    @property
    def slot_bytes_why(self) -> str:
        """What that is made of."""
        if self.spec.engine == "fake":
            return "no weights"
        if self.parameters is None:
            return "and the weights, once they are here"
        parted = f" / {self.parts} on each device" if self.parts > 1 else ""
        saved = f", less {self._saved_bytes / MIB:.0f} MiB by {self.settings.quantize}" if self._saved_bytes else ""
        return f"with {self.parameters / 1e6:.0f} million parameters of {self._parameter_bytes} bytes{parted}{saved}"

    @property
    def _saved_bytes(self) -> int:
        """Memory of a GPU that quantised weights save. On a CPU they are there unquantised first."""
        if self.settings.quantize is None or self.device.is_cpu or self.parameters is None:
            return 0
        count = count_in_blocks(self.spec)
        return max(0, int(self._parameter_bytes * count - quantised_bytes(self.settings.quantize, count)))

    @property
    def _parameter_bytes(self) -> int:
        return NUMBER_BYTES.get(self.settings.precision, 4 if self.device.is_cpu else 2)  # what auto is there

    @property
    def _most_by_memory(self) -> int | None:
        if self.device.memory is None or not self.slot_bytes:
            return None
        return self.device.memory.room_bytes(self.settings.memory_ratio) // self.slot_bytes


def _cores(number: int) -> str:
    return f"{number} physical core{'s' * (number > 1)}"


def _slots(number: int) -> str:
    return f"{number} slot{'s' * (number > 1)}"
