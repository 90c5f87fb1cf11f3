"""Which nodes and slots a machine gets."""

import importlib.metadata
import subprocess
from types import SimpleNamespace

import pytest

from tasks.errors import ModelNotFound, UsageError
from tasks.messages import ModelSpec
from tasks.settings import MIB, Settings
from workers import planning
from workers.planning import FAKE_SLOT_BYTES, SLOT_BYTES, NodePlan, plan_nodes

FAKE = ModelSpec.parse("fake")
HUB = ModelSpec.parse("org/name")


class Machine:
    """A machine with as many cores, bytes and GPUs as a test wants."""

    def __init__(self, monkeypatch, cgroup) -> None:
        self._patch = monkeypatch
        self._cgroup = cgroup
        monkeypatch.setattr(planning, "_CGROUP", cgroup)
        self.has(cores=8, free=64 * 1024 * MIB, gpus="")

    def has(self, *, cores=None, free=None, gpus=None, torch="2.13.0") -> None:
        """Change what the machine has; ``gpus`` is what nvidia-smi prints, None means that there is no such thing."""
        if cores is not None:
            self._patch.setattr(planning.os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
        if free is not None:
            memory = SimpleNamespace(available=free)
            self._patch.setattr(planning.psutil, "virtual_memory", lambda: memory)
        if gpus is not None:
            self._patch.setattr(planning.shutil, "which", lambda _: "/bin/nvidia-smi" if gpus else None)
            listed = SimpleNamespace(stdout=gpus)
            self._patch.setattr(subprocess, "run", lambda *_args, **_options: listed)
        self._patch.setattr(importlib.metadata, "version", lambda _: torch)

    def limits(self, **files) -> None:
        """Write what a container's control group says."""
        for name, text in files.items():
            (self._cgroup / name.replace("_", ".")).write_text(f"{text}\n")


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Return a machine with eight cores, 64 GiB and no GPU."""
    for name in ("PENSTOCK_CONFIG", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cgroup").mkdir()
    return Machine(monkeypatch, tmp_path / "cgroup")


def plan(model=FAKE, **settings):
    """Plan with these settings and nothing from the environment."""
    return plan_nodes(Settings(**settings), model)


# -- slots and threads on a CPU ----------------------------------------------------------------------------------


def test_a_cpu_gets_a_slot_per_core_with_one_thread_each(machine):
    """Measured faster than one process with all threads."""
    assert plan() == [NodePlan("cpu", slots=8, threads=1)]


def test_cores_are_those_that_this_process_may_use(machine):
    """Affinity counts, not what the machine has."""
    machine.has(cores=3)
    assert plan() == [NodePlan("cpu", slots=3, threads=1)]


def test_a_system_without_affinity_counts_all_cores(machine, monkeypatch):
    """As macOS does."""
    monkeypatch.delattr(planning.os, "sched_getaffinity")
    monkeypatch.setattr(planning.os, "cpu_count", lambda: 5)
    assert plan() == [NodePlan("cpu", slots=5, threads=1)]


@pytest.mark.parametrize(
    ("quota", "slots"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("150000 100000", 1),
        ("50000 100000", 1),
        ("9900000 100000", 8),
        ("", 8),
    ],
)
def test_a_containers_quota_counts(machine, quota, slots):
    """Whole cores, one at least; no quota means no limit."""
    machine.limits(cpu_max=quota)
    assert plan() == [NodePlan("cpu", slots=slots, threads=1)]


def test_free_memory_caps_the_slots_and_the_others_share_the_cores(machine):
    """Each slot holds its own weights; cores without one become threads."""
    machine.has(free=int(2.5 * FAKE_SLOT_BYTES / planning.MEMORY_SHARE))
    assert plan() == [NodePlan("cpu", slots=2, threads=4)]


def test_there_is_a_slot_however_little_memory_is_free(machine):
    """Whether it fits is then for the system to say."""
    machine.has(free=0)
    assert plan() == [NodePlan("cpu", slots=1, threads=8)]


def test_a_containers_memory_counts(machine):
    """What it may still take: its limit less what it holds."""
    need = int(FAKE_SLOT_BYTES / planning.MEMORY_SHARE)
    machine.limits(memory_max=5 * need + MIB, memory_current=2 * need)
    assert plan()[0].slots == 3
    machine.limits(memory_max="max")
    assert plan()[0].slots == 8
    machine.limits(memory_max=need, memory_current=2 * need)
    assert plan()[0].slots == 1


def test_a_real_model_needs_more_memory_than_the_fake_one(machine):
    """Torch and its buffers are in each process."""
    machine.has(free=int(4.5 * SLOT_BYTES / planning.MEMORY_SHARE))
    assert plan(HUB)[0].slots == 4
    assert plan(FAKE)[0].slots == 8


def test_weights_on_disk_count_once_per_slot(machine, tmp_path):
    """All weight files of the folder, however deep, and nothing else in it."""
    folder = tmp_path / "model"
    (folder / "1_Dense").mkdir(parents=True)
    for name, size in (("model.safetensors", 3), ("1_Dense/pytorch_model.bin", 2), ("notes.txt", 50)):
        with (folder / name).open("wb") as file:
            file.truncate(size * 100 * MIB)
    machine.has(free=int(3.1 * (SLOT_BYTES + 500 * MIB) / planning.MEMORY_SHARE))
    assert plan(ModelSpec.parse(str(folder)))[0].slots == 3


def test_the_user_has_the_last_word(machine):
    """Neither cores nor memory overrule what was asked for."""
    machine.has(free=0)
    assert plan(processes_per_device=20) == [NodePlan("cpu", slots=20, threads=1)]
    assert plan(processes_per_device=2) == [NodePlan("cpu", slots=2, threads=4)]
    assert plan(processes_per_device=2, threads_per_process=3) == [NodePlan("cpu", slots=2, threads=3)]
    machine.has(free=64 * 1024 * MIB)
    assert plan(threads_per_process=3) == [NodePlan("cpu", slots=8, threads=3)]


# -- models ------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_there_is_named_before_anything_starts(machine):
    """Otherwise every slot fails for itself."""
    with pytest.raises(ModelNotFound, match="/no/such/model: no such folder"):
        plan(ModelSpec.parse("/no/such/model"))


def test_an_empty_folder_is_named(machine, tmp_path):
    """A mount that failed looks like this."""
    (tmp_path / "model").mkdir()
    with pytest.raises(ModelNotFound, match="the folder is empty"):
        plan(ModelSpec.parse(str(tmp_path / "model")))


# -- devices -----------------------------------------------------------------------------------------------------


def test_each_gpu_gets_a_node_with_one_slot(machine):
    """The cores are shared between them."""
    machine.has(gpus="0\n1\n")
    expected = [NodePlan("cuda:0", slots=1, threads=4), NodePlan("cuda:1", slots=1, threads=4)]
    assert plan() == expected
    assert plan(devices="cuda") == expected


def test_more_gpus_than_cores_have_a_thread_each(machine):
    """A share of less than one core is one thread."""
    machine.has(cores=2, gpus="0\n1\n2\n3\n")
    assert [node.threads for node in plan()] == [1, 1, 1, 1]


def test_memory_of_the_machine_does_not_cap_a_gpu(machine):
    """Its weights lie elsewhere."""
    machine.has(gpus="0\n", free=0)
    assert plan(processes_per_device=2) == [NodePlan("cuda:0", slots=2, threads=4)]


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ("cpu", ["cpu"]), ("cuda:1", ["cuda:1"]), ("cuda:2,cuda:0", ["cuda:2", "cuda:0"]),
        (" cuda:0 , cuda:1 ", ["cuda:0", "cuda:1"]), ("cuda:1,cuda:1", ["cuda:1"]),
    ],
)  # fmt: skip
def test_devices_are_those_that_were_asked_for(machine, devices, expected):
    """In that order, one node each."""
    machine.has(gpus="0\n1\n2\n")
    assert [node.device for node in plan(devices=devices)] == expected


@pytest.mark.parametrize("devices", ["cuda:3", "cuda:0,cuda:3", "gpu", "cuda:x", "cuda:", "cuda:0,", "mps", ""])
def test_a_device_that_is_not_here_is_named(machine, devices):
    """Together with those that are."""
    machine.has(gpus="0\n1\n")
    with pytest.raises(UsageError, match=r"^--devices .*not here; there are cuda:0, cuda:1, or cpu alone"):
        plan(devices=devices)


@pytest.mark.parametrize("devices", ["cuda", "cuda:0"])
def test_a_machine_without_gpus_says_so(machine, devices):
    """And why that may be."""
    with pytest.raises(UsageError, match=f"^--devices {devices}: no CUDA device is usable here"):
        plan(devices=devices)


def test_without_a_gpu_auto_means_the_cpu(machine):
    """A laptop needs no option."""
    assert [node.device for node in plan(devices="auto")] == ["cpu"]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("1", ["cuda:1"]), ("2,0", ["cuda:2", "cuda:0"]), ("", ["cpu"]), ("-1", ["cpu"]), ("NoDevFiles", ["cpu"]),
        ("GPU-8932f937,1", ["cuda:GPU-8932f937", "cuda:1"]), ("MIG-4f0b", ["cuda:MIG-4f0b"]), ("7", ["cpu"]),
    ],
)  # fmt: skip
def test_gpus_that_belong_to_others_are_left_alone(machine, monkeypatch, visible, expected):
    """A scheduler says in CUDA_VISIBLE_DEVICES which ones this process has."""
    machine.has(gpus="0\n1\n2\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    nodes = plan()
    assert [node.device for node in nodes] == expected
    assert [node.environment()["CUDA_VISIBLE_DEVICES"] for node in nodes] == [
        "" if device == "cpu" else device.removeprefix("cuda:") for device in expected
    ]


@pytest.mark.parametrize("listed", ["No devices were found\n", "\n", "NVIDIA-SMI has failed\n"])
def test_a_driver_without_devices_is_no_gpu(machine, listed):
    """nvidia-smi may be there and find nothing."""
    machine.has(gpus=listed)
    assert [node.device for node in plan()] == ["cpu"]


def test_torch_for_cpus_uses_no_gpu(machine):
    """It could not, whatever the driver lists."""
    machine.has(gpus="0\n", torch="2.13.0+cpu")
    assert [node.device for node in plan()] == ["cpu"]


def test_no_torch_uses_no_gpu(machine, monkeypatch):
    """A machine with the fake engine only needs none."""
    machine.has(gpus="0\n")

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert [node.device for node in plan()] == ["cpu"]


# -- environments ------------------------------------------------------------------------------------------------


def test_a_node_on_a_gpu_sees_that_one():
    """Its slots call it the first, people call it by its number."""
    environment = NodePlan("cuda:3", slots=1, threads=4).environment()
    assert environment["CUDA_VISIBLE_DEVICES"] == "3"
    assert environment["PENSTOCK_SHOWN_DEVICE"] == "cuda:3"
    assert environment["TOKENIZERS_PARALLELISM"] == "true"


def test_a_node_on_the_cpu_sees_no_gpu():
    """Otherwise torch would reserve memory there."""
    environment = NodePlan("cpu", slots=2, threads=1).environment()
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert environment["TOKENIZERS_PARALLELISM"] == "false"


def test_every_library_gets_the_same_number_of_threads():
    """They read it when they load, so it stands in the environment."""
    environment = NodePlan("cpu", slots=2, threads=3).environment()
    libraries = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    assert {environment[name] for name in libraries} == {"3"}
