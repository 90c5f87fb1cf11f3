"""Which nodes and slots a machine gets. Machines are made up; not yet run on one with GPUs or several NUMA nodes."""

from __future__ import annotations

import json
import struct

import pytest

from tasks.errors import ModelNotFound, UsageError
from tasks.messages import ModelSpec
from tasks.settings import MIB, Settings
from tests.machines import A100, GIB, H200, MIG_UUIDS, UUIDS, gpu_line
from workers.devices import Device
from workers.idleness import NOTE_VARIABLE, Idleness
from workers.planning import CUDA_SLOT_BYTES, FAKE_SLOT_BYTES, SLOT_BYTES, NodePlan, plan_nodes

FAKE = ModelSpec.parse("fake")
HUB = ModelSpec.parse("org/name")


@pytest.fixture
def model(tmp_path):
    """Return a function that makes a model's folder with so many million parameters."""

    def make(millions: float, name: str = "model.safetensors") -> ModelSpec:
        folder = tmp_path / f"model-{millions:g}"
        folder.mkdir(exist_ok=True)
        header = json.dumps({"weight": {"dtype": "F16", "shape": [int(millions * 1000), 1000]}}).encode()
        (folder / name).write_bytes(struct.pack("<Q", len(header)) + header)
        return ModelSpec.parse(str(folder))

    return make


def plan(spec=FAKE, **settings):
    """Plan with these settings and nothing from the environment."""
    return plan_nodes(Settings(**settings), spec)


def short(plans):
    """Return device, slots and threads of each node."""
    return [(node.device.name, node.slots, node.threads) for node in plans]


# -- slots and threads on a CPU ----------------------------------------------------------------------------------


def test_a_cpu_gets_a_slot_per_core_with_one_thread_each(host):
    """Measured faster than one process with all threads."""
    (node,) = plan()
    assert short([node]) == [("cpu", 8, 1)]
    assert (node.slots_why, node.threads_why) == ("8 physical cores / 1 thread", "8 physical cores / 8 slots")


def test_hyperthreads_get_no_slots(host):
    """They share the arithmetic of their core."""
    host.has_cores(4, threads=2)
    assert short(plan()) == [("cpu", 4, 1)]


def test_cores_are_those_that_this_process_may_use(host):
    """Affinity counts, not what the machine has."""
    host.may_use({0, 1, 5})
    assert short(plan()) == [("cpu", 3, 1)]


@pytest.mark.parametrize(("quota", "slots"), [("200000 100000", 2), ("50000 100000", 1), ("9900000 100000", 8)])
def test_a_containers_quota_counts(host, quota, slots):
    """One slot at least."""
    host.says("fs/cgroup/cpu.max", quota)
    assert short(plan()) == [("cpu", slots, 1)]


def test_free_memory_caps_the_slots_and_the_others_share_the_cores(host):
    """Each slot holds its own weights; cores without one become threads."""
    host.has_memory(free=16 * GIB + int(2.5 * FAKE_SLOT_BYTES), total=80 * GIB)
    (node,) = plan()
    assert short([node]) == [("cpu", 2, 4)]
    assert node.slots_why == "no more by memory"


def test_the_memory_ratio_says_how_much_may_be_in_use(host):
    """By all processes of the machine."""
    host.has_memory(free=40 * GIB + 3 * FAKE_SLOT_BYTES, total=80 * GIB)
    assert plan(memory_ratio=0.8)[0].slots == 8
    assert plan(memory_ratio=0.5)[0].slots == 3
    assert plan(memory_ratio=0.4)[0].slots == 1


def test_there_is_a_slot_however_little_memory_is_free(host):
    """Whether it fits is then for the system to say."""
    host.has_memory(free=0)
    assert short(plan()) == [("cpu", 1, 8)]


def test_a_containers_memory_counts(host):
    """What it may still take, up to the ratio of its limit."""
    host.says("fs/cgroup/memory.max", 100 * FAKE_SLOT_BYTES)
    host.says("fs/cgroup/memory.current", 77 * FAKE_SLOT_BYTES - MIB)
    assert plan()[0].slots == 3


def test_weights_count_once_per_slot_in_the_precision_of_the_device(host, model):
    """Half precision on disk becomes fp32 on a CPU."""
    spec = model(500)
    host.has_memory(free=16 * GIB + int(3.1 * (SLOT_BYTES + 4 * 500_000_000)))
    assert plan(spec)[0].slots == 3
    assert plan(spec)[0].slot_bytes == SLOT_BYTES + 2_000_000_000
    assert plan(spec)[0].slot_bytes_why == "with 500 million parameters of 4 bytes"
    assert plan(spec, precision="bf16")[0].slot_bytes == SLOT_BYTES + 1_000_000_000


def test_a_model_that_is_not_here_yet_counts_without_its_weights(host):
    """Its size is known once it is fetched."""
    host.has_memory(free=16 * GIB + int(4.5 * SLOT_BYTES))
    (node,) = plan(HUB)
    assert (node.slots, node.slot_bytes_why) == (4, "and the weights, once they are here")


def test_the_user_has_the_last_word(host):
    """Neither cores nor memory overrule what was asked for."""
    host.has_memory(free=0)
    assert short(plan(processes_per_device=20)) == [("cpu", 20, 1)]
    assert short(plan(processes_per_device=2)) == [("cpu", 2, 4)]
    (node,) = plan(processes_per_device=2, threads_per_process=3)
    assert short([node]) == [("cpu", 2, 3)]
    assert node.slots_why == node.threads_why == "as asked for"
    (node,) = plan(workers=3)
    assert (node.slots, node.slots_why) == (3, "its share of --workers 3")


def test_threads_that_were_asked_for_leave_fewer_slots(host):
    """Processes times threads are the cores."""
    (node,) = plan(threads_per_process=3)
    assert short([node]) == [("cpu", 2, 3)]
    assert node.slots_why == "8 physical cores / 3 threads"
    assert short(plan(threads_per_process=16)) == [("cpu", 1, 16)]


def test_auto_is_the_default(host):
    """It may be written, too."""
    assert short(plan(processes_per_device="auto")) == short(plan()) == [("cpu", 8, 1)]


# -- NUMA --------------------------------------------------------------------------------------------------------


def test_several_numa_nodes_are_a_device_each(host):
    """Slots shared out evenly, pinned to the CPUs of theirs, hyperthreads included."""
    host.has_cores(8, threads=2, numa=2)
    nodes = plan()
    assert short(nodes) == [("cpu:0", 4, 1), ("cpu:1", 4, 1)]
    assert [node.device.cpus for node in nodes] == [{0, 1, 2, 3, 8, 9, 10, 11}, {4, 5, 6, 7, 12, 13, 14, 15}]
    assert [node.environment()["PENSTOCK_SHOWN_DEVICE"] for node in nodes] == ["cpu:0", "cpu:1"]


def test_one_numa_node_pins_nothing(host):
    """The kernel places processes well enough there."""
    assert plan()[0].device.cpus == frozenset()


def test_workers_are_shared_out_among_numa_nodes(host):
    """The first ones have one more."""
    host.has_cores(8, numa=2)
    assert short(plan(workers=5)) == [("cpu:0", 3, 1), ("cpu:1", 2, 2)]
    assert short(plan(processes_per_device=1)) == [("cpu:0", 1, 4), ("cpu:1", 1, 4)]


def test_fewer_workers_than_numa_nodes_are_not_pinned(host):
    """A single process would get half of the machine."""
    host.has_cores(8, numa=2)
    (node,) = plan(workers=1)
    assert short([node]) == [("cpu", 1, 8)]
    assert node.device.cpus == frozenset()


def test_a_quota_within_one_numa_node_pins_nothing(host):
    """Otherwise all small containers of a machine would crowd on its first node."""
    host.has_cores(8, numa=2)
    host.says("fs/cgroup/cpu.max", "400000 100000")
    assert short(plan()) == [("cpu", 4, 1)]
    host.says("fs/cgroup/cpu.max", "600000 100000")
    assert short(plan()) == [("cpu:0", 3, 1), ("cpu:1", 3, 1)]


def test_numa_nodes_share_the_memory(host):
    """Each holds the weights of its slots."""
    host.has_cores(8, numa=2)
    host.has_memory(free=16 * GIB + int(4.5 * FAKE_SLOT_BYTES))
    assert short(plan()) == [("cpu:0", 2, 2), ("cpu:1", 2, 2)]


def test_numa_nodes_may_be_named(host):
    """Another program may have the others."""
    host.has_cores(8, numa=2)
    assert short(plan(devices="cpu:1")) == [("cpu:1", 4, 1)]
    assert short(plan(devices="cpu:1,cpu:0,cpu:1")) == [("cpu:1", 4, 1), ("cpu:0", 4, 1)]
    assert short(plan(devices="cpu")) == [("cpu:0", 4, 1), ("cpu:1", 4, 1)]
    with pytest.raises(UsageError, match=r"^--devices cpu:2: not here; there are cpu, cpu:0, cpu:1\.$"):
        plan(devices="cpu:2")


# -- models ------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_there_is_named_before_anything_starts(host):
    """Otherwise every slot fails for itself."""
    with pytest.raises(ModelNotFound, match="/no/such/model: no such folder"):
        plan(ModelSpec.parse("/no/such/model"))


def test_an_empty_folder_is_named(host, tmp_path):
    """A mount that failed looks like this."""
    (tmp_path / "model").mkdir()
    with pytest.raises(ModelNotFound, match="the folder is empty"):
        plan(ModelSpec.parse(str(tmp_path / "model")))


# -- GPUs --------------------------------------------------------------------------------------------------------


def test_each_gpu_gets_a_node(host):
    """The cores are shared between them."""
    host.has_gpus(gpu_line(0) + gpu_line(1))
    assert short(plan()) == short(plan(devices="cuda")) == [("cuda:0", 1, 4), ("cuda:1", 1, 4)]


def test_more_gpus_than_cores_have_a_thread_each(host):
    """A share of less than one core is one thread."""
    host.has_cores(2)
    host.has_gpus("".join(map(gpu_line, range(4))))
    assert [node.threads for node in plan()] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("millions", "slots", "why"),
    [
        (22.7, 4, "23 million parameters do not fill it in one process"),
        (109, 2, "109 million parameters do not fill it in one process"),
        (1540, 1, "1540 million parameters fill it"),
    ],
)
def test_small_models_get_several_processes_on_a_gpu(host, model, millions, slots, why):
    """One cannot fill it: it waits for tokenising and for launching kernels."""
    host.has_gpus(gpu_line(0))
    (node,) = plan(model(millions))
    assert short([node]) == [("cuda:0", slots, 8 // slots)]
    assert node.slots_why == why
    assert node.slot_bytes == CUDA_SLOT_BYTES + int(millions * 2e6)


def test_a_model_of_unknown_size_gets_one_process(host):
    """The next start knows more."""
    host.has_gpus(gpu_line(0))
    (node,) = plan(HUB)
    assert (node.slots, node.slots_why) == (1, "the model's size is not known yet")


def test_cores_cap_the_processes_of_a_gpu(host, model):
    """Each needs one to launch its kernels from."""
    host.has_cores(4)
    host.has_gpus(gpu_line(0) + gpu_line(1))
    nodes = plan(model(22.7))
    assert short(nodes) == [("cuda:0", 2, 1), ("cuda:1", 2, 1)]
    assert nodes[0].slots_why == "no more than 2 physical cores"


def test_memory_of_the_gpu_caps_its_processes(host, model):
    """Whoever else uses it; not the memory of the machine."""
    used_mib = int(143_771 * 0.8) - 3 * 2200
    host.has_memory(free=0)
    host.has_gpus(gpu_line(0, free_mib=143_771 - used_mib))
    (node,) = plan(model(22.7))
    assert (node.slots, node.slots_why) == (3, "no more by memory")
    assert plan(model(22.7), processes_per_device=9)[0].slots == 9


def test_quantised_weights_take_less_of_a_gpu(host, tmp_path):
    """The matrices of repeated blocks do; on a CPU the weights are there unquantised first."""
    shapes = {"embed.weight": [1000, 1024], "layers.0.up.weight": [4096, 1024], "layers.0.norm.weight": [1024]}
    header = json.dumps({name: {"dtype": "F32", "shape": shape} for name, shape in shapes.items()}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    spec = ModelSpec.parse(str(tmp_path))
    host.has_gpus(gpu_line(0))
    plain, int8, int4 = (plan(spec, devices="cuda", quantize=kind)[0] for kind in (None, "int8", "int4"))
    assert plain.slot_bytes - int8.slot_bytes == 4 * MIB
    assert plain.slot_bytes - int4.slot_bytes == 4 * 1.4375 * MIB
    assert int8.slot_bytes_why.endswith("of 2 bytes, less 4 MiB by int8")
    assert len({plan(spec, devices="cpu", quantize=kind)[0].slot_bytes for kind in (None, "int8")}) == 1


def test_memory_that_nobody_tells_caps_nothing(host, model):
    """Such as that of chips that share it with the CPU."""
    host.has_gpus(f"0, {UUIDS[0]}, 0000000F:01:00.0, [N/A], [N/A], [N/A], NVIDIA GB10\n")
    assert plan(model(22.7))[0].slots == 4


def test_an_idle_gpu_gets_one_process_more(host, model):
    """As its former run measured; the note is kept for this model on this kind of device."""
    host.has_gpus(gpu_line(0))
    spec = model(1540)
    (node,) = plan(spec)
    assert node.note is not None
    assert node.environment()[NOTE_VARIABLE] == str(node.note)
    Idleness(processes=1, idle_share=0.23).write(node.note)
    (node,) = plan(spec)
    assert (node.slots, node.slots_why) == (2, "1 left it 23% idle")
    Idleness(processes=2, idle_share=0.04).write(node.note)
    assert plan(spec)[0].slots == 2
    assert plan(model(1541))[0].slots == 1
    Idleness(processes=40, idle_share=0.5).write(node.note)
    assert plan(spec)[0].slots == 8  # cores
    node.note.write_text("{}")
    assert plan(spec)[0].slots == 1


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("cuda:1", ["cuda:1"]), ("cuda:2,cuda:0", ["cuda:2", "cuda:0"]), (" cuda:0 , cuda:1 ", ["cuda:0", "cuda:1"]),
        ("cuda:1,cuda:1", ["cuda:1"]), (f"cuda:{UUIDS[2]}", ["cuda:2"]), (f"cuda:{UUIDS[1]},cuda:1", ["cuda:1"]),
        ("cuda:GPU-4404", ["cuda:1"]),
    ],
)  # fmt: skip
def test_devices_are_those_that_were_asked_for(host, names, expected):
    """In that order, by number or UUID, one node each."""
    host.has_gpus("".join(map(gpu_line, range(3))))
    assert [node.device.name for node in plan(devices=names)] == expected


@pytest.mark.parametrize(
    "names", ["cuda:3", "cuda:0,cuda:3", "gpu", "cuda:x", "cuda:", "cuda:0,", "mps", "", "cuda:MIG-1", "cpu,cuda:0"]
)
def test_a_device_that_is_not_here_is_named(host, names):
    """Together with those that are."""
    host.has_gpus(gpu_line(0) + gpu_line(1))
    with pytest.raises(UsageError, match=r"^--devices .*not here; there are cuda:0, cuda:1, or cpu alone"):
        plan(devices=names)


@pytest.mark.parametrize("names", ["cuda", "cuda:0"])
def test_a_machine_without_gpus_says_so(host, names):
    """And why that may be."""
    with pytest.raises(UsageError, match=f"^--devices {names}: no CUDA device is usable here"):
        plan(devices=names)


def test_without_a_gpu_auto_means_the_cpu(host):
    """A laptop needs no option; an image with nvidia-smi but no driver is none with a GPU."""
    assert [node.device.name for node in plan(devices="auto")] == ["cpu"]
    host.has_gpus("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", status=9)
    assert [node.device.name for node in plan(devices="auto")] == ["cpu"]
    with pytest.raises(UsageError, match="nvidia-smi fails with status 9"):
        plan(devices="cuda")


@pytest.mark.parametrize("names", ["auto", "cuda"])
def test_a_driver_that_is_broken_is_no_reason_to_take_the_cpu(host, names):
    """A fleet would slow down unseen; whoever wants the CPU can say so."""
    host.has_gpus("Unable to determine the device handle for GPU 0000:41:00.0: Unknown Error\n", status=15)
    with pytest.raises(UsageError, match=r"Unknown Error\. Mend the driver, or use --devices cpu"):
        plan(devices=names)
    assert short(plan(devices="cpu")) == [("cpu", 8, 1)]


@pytest.mark.parametrize("version", ["2.13.0+cpu", None])
def test_without_torch_for_cuda_no_gpu_is_used(host, version):
    """It could not be, whatever the driver lists."""
    host.has_gpus(gpu_line(0))
    host.has_torch(version)
    assert [node.device.name for node in plan()] == ["cpu"]


def test_gpus_that_belong_to_others_are_left_alone(host, monkeypatch):
    """A scheduler says in CUDA_VISIBLE_DEVICES which ones this process has; each node sees one of them."""
    host.has_gpus("".join(map(gpu_line, range(3))))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-4cf8")
    nodes = plan()
    assert [node.device.name for node in nodes] == ["cuda:2", "cuda:0"]
    assert [node.environment()["CUDA_VISIBLE_DEVICES"] for node in nodes] == [UUIDS[2], UUIDS[0]]
    with pytest.raises(UsageError, match="there are cuda:2, cuda:0"):
        plan(devices="cuda:1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [node.device.name for node in plan()] == ["cpu"]


def test_the_instances_of_a_divided_gpu_get_a_node_each(host, monkeypatch):
    """Also where a scheduler gives only some of them."""
    listed = f"GPU 0: {A100} (UUID: {UUIDS[0]})\n" + "".join(
        f"  MIG 1g.5gb      Device  {number}: (UUID: {uuid})\n" for number, uuid in enumerate(MIG_UUIDS)
    )
    host.has_gpus(gpu_line(0, title=A100, mig="Enabled") + gpu_line(1), listed=listed)
    assert [node.environment()["CUDA_VISIBLE_DEVICES"] for node in plan()] == [*MIG_UUIDS, UUIDS[1]]
    assert [node.device.uuid for node in plan(devices="cuda:0")] == MIG_UUIDS
    assert [node.device.name for node in plan(devices=f"cuda:{MIG_UUIDS[1]}")] == [f"cuda:{MIG_UUIDS[1]}"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", MIG_UUIDS[1])
    assert [node.device.uuid for node in plan()] == [MIG_UUIDS[1]]


def test_a_gpu_pins_its_node_to_the_cpus_near_it(host):
    """Those of its NUMA node, shared out among the GPUs there; one whose place is unknown is not pinned."""
    host.has_cores(16, numa=2)
    for slot, numa in ((1, 0), (2, 1), (3, 1), (4, -1)):
        host.says(f"bus/pci/devices/0000:{slot:02x}:00.0/numa_node", numa)
    host.has_gpus("".join(map(gpu_line, range(4))))
    nodes = plan()
    assert [node.device.cpus for node in nodes] == [set(range(8)), set(range(8, 16)), set(range(8, 16)), set()]
    assert [node.threads for node in nodes] == [8, 4, 4, 4]
    assert [node.device.numa_node for node in nodes] == [0, 1, 1, None]


def test_a_gpu_whose_cpus_belong_to_others_is_not_pinned(host):
    """A container may have a GPU of one socket and cores of the other."""
    host.has_cores(8, numa=2)
    host.may_use({0, 1, 2, 3})
    host.says("bus/pci/devices/0000:01:00.0/numa_node", 1)
    host.has_gpus(gpu_line(0))
    assert plan()[0].device.cpus == frozenset()
    assert short(plan()) == [("cuda:0", 1, 4)]


def test_one_numa_node_pins_no_gpu(host):
    """There is nothing to choose."""
    host.says("bus/pci/devices/0000:01:00.0/numa_node", 0)
    host.has_gpus(gpu_line(0))
    assert plan()[0].device.cpus == frozenset()


# -- environments ------------------------------------------------------------------------------------------------


def test_a_node_on_a_gpu_sees_that_one():
    """Its slots call it the first, people call it by its number."""
    environment = NodePlan(Device("cuda:3", H200, UUIDS[3]), slots=1, threads=4).environment()
    assert environment["CUDA_VISIBLE_DEVICES"] == UUIDS[3]
    assert environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert environment["PENSTOCK_SHOWN_DEVICE"] == "cuda:3"
    assert environment["TOKENIZERS_PARALLELISM"] == "true"


def test_a_node_on_the_cpu_sees_no_gpu():
    """Otherwise torch would reserve memory there."""
    environment = NodePlan(Device("cpu"), slots=2, threads=1).environment()
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert environment["TOKENIZERS_PARALLELISM"] == "false"


def test_every_library_gets_the_same_number_of_threads():
    """They read it when they load, so it stands in the environment."""
    environment = NodePlan(Device("cpu"), slots=2, threads=3).environment()
    libraries = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    assert {environment[name] for name in libraries} == {"3"}
