"""The GPUs that nvidia-smi lists, by a program that prints what it does. Not run with a real one."""

from __future__ import annotations

import pytest

from tasks.errors import UsageError
from tasks.settings import MIB
from tests.machines import A100, H200, MIG_UUIDS, UUIDS, Machine, gpu_line
from workers import gpus
from workers.gpus import Gpu
from workers.machine import Memory

#: What -L prints of two GPUs, one of which is divided; the spaces are nvidia-smi's.
LISTED = (
    f"GPU 0: {A100} (UUID: {UUIDS[0]})\n"
    f"  MIG 3g.20gb     Device  0: (UUID: {MIG_UUIDS[0]})\n"
    f"  MIG 1g.5gb      Device  1: (UUID: {MIG_UUIDS[1]})\n"
    f"GPU 1: {A100} (UUID: {UUIDS[1]})\n"
)


@pytest.fixture
def host(monkeypatch, tmp_path):
    """Return a machine without a GPU."""
    return Machine(monkeypatch, tmp_path)


def listed():
    """List the GPUs of a machine that should have some."""
    return gpus.list_gpus(is_driver_needed=True)


def plain(number):
    """Return GPUs without MIG."""
    return [Gpu(str(i), UUIDS[i], UUIDS[i], H200, None, None) for i in range(number)]


def divided():
    """Return the instances of GPU 0, and GPU 1."""
    first = [Gpu("0", uuid, UUIDS[0], A100, None, None) for uuid in MIG_UUIDS]
    return [*first, Gpu("1", UUIDS[1], UUIDS[1], A100, None, None)]


# -- listing -----------------------------------------------------------------------------------------------------


def test_a_gpu_has_number_uuid_memory_and_place(host):
    """All of it in one question."""
    host.says("bus/pci/devices/0000:02:00.0/numa_node", 1)
    host.has_gpus(gpu_line(0, mig="[N/A]") + gpu_line(1, free_mib=1000))
    memory = 143_771 * MIB
    assert listed() == [
        Gpu("0", UUIDS[0], UUIDS[0], H200, Memory(memory, 143_000 * MIB), None),
        Gpu("1", UUIDS[1], UUIDS[1], H200, Memory(memory, 1000 * MIB), 1),
    ]
    assert [gpu.name for gpu in listed()] == ["cuda:0", "cuda:1"]


def test_the_instances_of_a_divided_gpu_stand_for_it(host):
    """Each with the memory of its profile; the GPU itself computes nothing."""
    host.has_gpus(gpu_line(0, title=A100, mig="Enabled") + gpu_line(1, title=A100), listed=LISTED)
    found = listed()
    assert [gpu.name for gpu in found] == [f"cuda:{MIG_UUIDS[0]}", f"cuda:{MIG_UUIDS[1]}", "cuda:1"]
    assert [gpu.title for gpu in found] == [f"{A100} MIG 3g.20gb", f"{A100} MIG 1g.5gb", A100]
    assert [gpu.memory and gpu.memory.total_bytes for gpu in found[:2]] == [20 * 10**9, 5 * 10**9]
    assert [gpu.gpu_uuid for gpu in found] == [UUIDS[0], UUIDS[0], UUIDS[1]]


def test_instances_of_older_drivers_have_names_of_another_form(host):
    """With the GPU's and two numbers."""
    uuid = f"MIG-{UUIDS[0]}/1/0"
    old = f"GPU 0: {A100} (UUID: {UUIDS[0]})\n  MIG 3g.20gb Device 0: (UUID: {uuid})\n"
    host.has_gpus(gpu_line(0, mig="Enabled"), listed=old)
    assert [gpu.name for gpu in listed()] == [f"cuda:{uuid}"]


def test_a_gpu_in_mig_mode_without_instances_is_of_no_use(host):
    """It was divided into nothing."""
    host.has_gpus(gpu_line(0, mig="Enabled"), listed=f"GPU 0: {A100} (UUID: {UUIDS[0]})\n")
    assert listed() == []


@pytest.mark.parametrize("size", ["[N/A]", "[Insufficient Permissions]", "[Not Supported]"])
def test_memory_that_the_driver_does_not_tell_is_unknown(host, size):
    """Such as that of chips that share it with the CPU, or in a container with a part of a GPU."""
    host.has_gpus(f"0, {UUIDS[0]}, 0000000F:01:00.0, {size}, {size}, [N/A], NVIDIA GB10\n")
    assert [gpu.memory for gpu in listed()] == [None]


def test_a_machine_without_nvidia_smi_has_no_gpus(host):
    """Nor has one whose driver lists none."""
    assert listed() == []
    host.has_gpus("No devices were found\n", status=6)
    assert listed() == []


def test_a_driver_that_fails_is_named_in_one_line(host):
    """With the words of nvidia-smi, and what to do."""
    host.has_gpus("Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 570\n", status=18)
    with pytest.raises(
        UsageError,
        match=r"^nvidia-smi fails with status 18: Failed to initialize NVML: Driver/library version mismatch\. "
        r"Mend the driver, or use --devices cpu\.$",
    ):
        listed()


def test_a_machine_whose_driver_is_not_loaded_has_gpus_only_if_they_are_asked_for(host):
    """An image with nvidia-smi runs on machines without a GPU, too."""
    host.has_gpus("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", status=9)
    assert gpus.list_gpus(is_driver_needed=False) == []
    with pytest.raises(UsageError, match="fails with status 9: NVIDIA-SMI has failed"):
        listed()


def test_a_driver_that_hangs_is_not_waited_for(host, monkeypatch):
    """Otherwise a worker would never say why it does not start."""
    monkeypatch.setattr(gpus, "ANSWER_S", 0.2)
    host.has_gpus("", hangs=True)
    with pytest.raises(UsageError, match="nvidia-smi has not answered for 0 s: the GPU driver hangs"):
        listed()


# -- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("1", [1]), (UUIDS[2], [2]), (UUIDS[2][:12], [2]), ("GPU-4", []), ("GPU-44", [1]),
        ("4", []), ("-1", []), ("", []), ("GPU-", []), ("4404041a", []), ("01", []),
    ],
)  # fmt: skip
def test_a_gpu_is_called_by_number_or_uuid_or_the_beginning_of_one(name, expected):
    """As long as only one begins so."""
    assert [int(gpu.index) for gpu in gpus.find(plain(4), name)] == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (MIG_UUIDS[1], [1]), (MIG_UUIDS[1][:10], [1]), ("MIG-", []), ("0", [0, 1]), (UUIDS[0], [0, 1]),
        ("GPU-4cf8", [0, 1]), ("1", [2]), ("GPU-4", []),
    ],
)  # fmt: skip
def test_a_divided_gpu_means_its_instances(name, expected):
    """By itself it could not compute."""
    found = divided()
    assert [found.index(gpu) for gpu in gpus.find(found, name)] == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("1", [1]), ("2,0", [2, 0]), (" 2 , 0 ", [2, 0]), ("", []), ("-1", []), ("NoDevFiles", []), ("7", []),
        (f"{UUIDS[3]},1", [3, 1]), ("GPU-79,GPU-44", [2, 1]), ("1,1", [1]), ("0,-1,1", [0]), ("0,GPU-4,1", [0]),
    ],
)  # fmt: skip
def test_a_scheduler_names_what_is_ours(names, expected):
    """In CUDA_VISIBLE_DEVICES; what follows a name of nothing does not count, for CUDA neither."""
    assert [int(gpu.index) for gpu in gpus.visible(plain(4), names)] == expected


def test_a_scheduler_may_give_an_instance():
    """By its UUID, beside others or alone."""
    assert [gpu.uuid for gpu in gpus.visible(divided(), f"{MIG_UUIDS[1]},1")] == [MIG_UUIDS[1], UUIDS[1]]
