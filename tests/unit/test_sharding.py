"""Slots over several devices, as far as that needs no model: the plan, the share of each device, orders on a pipe."""

from __future__ import annotations

import io
from contextlib import suppress

import numpy as np
import pytest

from tasks.endings import EXIT_RANK_FULL, EXIT_RANK_LOST, EXIT_ROW_FULL, ending_of
from tasks.errors import UsageError
from tasks.messages import ModelSpec
from tasks.settings import Settings
from tests.machines import GIB, MIG_UUIDS, UUIDS, gpu_line
from workers import budget
from workers.planning import CUDA_SLOT_BYTES, RANKS_VARIABLE, SLOT_BYTES, plan_nodes
from workers.sharding import orders
from workers.sharding.orders import Order
from workers.sharding.spreading import WEIGHTS_SHARE, limits_of, place_units

HUB = ModelSpec.parse("org/name")


def plan(**settings):
    """Return the only node of a sharded model that nobody has downloaded."""
    (node,) = plan_nodes(Settings(**settings), HUB)
    return node


# -- the plan ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "ranks"), [("auto", 1), ("tensor", 2), ("fsdp", 2)])
def test_all_gpus_make_one_slot(host, kind, ranks):
    """It sees all of them; with a process on each, these share its threads."""
    host.has_gpus(gpu_line(0) + gpu_line(1))
    node = plan(shard=kind, devices="cuda:0,cuda:1")
    assert (node.device.name, node.slots, node.ranks, node.threads) == ("cuda:0+cuda:1", 1, ranks, 8 // ranks)
    environment = node.environment()
    assert environment["CUDA_VISIBLE_DEVICES"] == f"{UUIDS[0]},{UUIDS[1]}"
    assert environment.get(RANKS_VARIABLE, "1") == str(ranks)
    assert node.slot_bytes == CUDA_SLOT_BYTES
    assert node.note is None


def test_the_fullest_gpu_is_what_the_plan_goes_by(host):
    """Each device takes the same share of the model."""
    host.has_gpus(gpu_line(0) + gpu_line(1, free_mib=1024))
    assert plan(shard="tensor", devices="cuda").device.memory.free_bytes == GIB


def test_a_cpu_that_is_named_twice_is_two_devices_to_try_with(host):
    """Its cores and its memory are shared out, and no GPU is seen."""
    node = plan(shard="fsdp", devices="cpu,cpu")
    assert (node.device.name, node.ranks, node.threads, node.slot_bytes) == ("cpu+cpu", 2, 4, SLOT_BYTES)
    assert node.environment()["CUDA_VISIBLE_DEVICES"] == ""
    assert node.device.is_cpu


def test_mig_instances_are_not_joined(host):
    """A process sees one of them alone; that one is a slot as ever."""
    listed = f"GPU 0: H200 (UUID: {UUIDS[0]})\n" + "".join(
        f"  MIG 3g.71gb     Device  {i}: (UUID: {uuid})\n" for i, uuid in enumerate(MIG_UUIDS)
    )
    host.has_gpus(gpu_line(0, mig="Enabled"), listed=listed)
    with pytest.raises(UsageError, match=r"one MIG instance alone\. Name whole GPUs"):
        plan(shard="auto", devices="cuda")
    assert plan(shard="auto", devices=f"cuda:{MIG_UUIDS[0]}").ranks == 1


def test_without_shard_a_cpu_that_is_named_twice_is_one(host):
    """As it always was."""
    (node,) = plan_nodes(Settings(devices="cpu,cpu"), HUB)
    assert (node.device.name, node.slots, node.ranks) == ("cpu", 8, 1)
    assert RANKS_VARIABLE not in node.environment()


def test_auto_takes_one_device_as_it_is(host):
    """There is nothing to spread, and no harm done."""
    node = plan(shard="auto", devices="cpu")
    assert (node.device.name, node.slots, node.ranks, node.threads) == ("cpu", 1, 1, 8)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shard": "tensor", "devices": "cpu"}, "--shard tensor .* there is cpu alone"),
        ({"shard": "auto", "workers": 2}, "leave --workers 2 out"),
        ({"shard": "fsdp", "processes_per_device": 3}, "leave --processes-per-device 3 out"),
        ({"shard": "auto", "backend": "onnx"}, "does not go with --backend onnx"),
        ({"shard": "tensor", "quantize": "int8"}, "does not go with --quantize int8"),
    ],
)
def test_what_does_not_go_with_shard_is_refused(host, options, said):
    """One line says which option, and what to do."""
    with pytest.raises(UsageError, match=said):
        plan(**options)


def test_engines_without_a_transformer_are_refused(host):
    """The fake engine has nothing to lay anywhere."""
    with pytest.raises(UsageError, match="fake is none"):
        plan_nodes(Settings(shard="auto"), ModelSpec.parse("fake"))


def test_a_missing_package_is_named(host, monkeypatch):
    """With the extra that brings it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"pip install 'penstock\[shard\]'"):
        plan(shard="tensor", devices="cpu,cpu")


# -- the share of each device ------------------------------------------------------------------------------------


#: A table of words, layers, and a head.
UNITS = [2 * GIB, *[GIB] * 60, 2 * GIB]


@pytest.mark.parametrize("n_devices", [2, 3, 4, 8])
def test_layers_are_spread_evenly_and_the_first_device_gets_less(n_devices):
    """Batches come in and go out there: the article's first GPU was full, and the others idle."""
    rooms = [80 * GIB] * n_devices
    first, *others = place_units(UNITS, limits_of(rooms, UNITS))
    even = sum(UNITS) / n_devices
    assert 0.6 * even < first <= even
    assert max(others) - min(others) <= 3 * GIB
    assert sum(others) + first == sum(UNITS)


def test_small_devices_get_what_they_take_and_large_ones_the_rest():
    """No layer lies elsewhere for want of an even share."""
    rooms = [24 * GIB, 80 * GIB, 80 * GIB]
    held = place_units(UNITS, limits_of(rooms, UNITS))
    assert all(0 < size <= WEIGHTS_SHARE * room for size, room in zip(held, rooms, strict=True))
    assert sum(held) == sum(UNITS)


@pytest.mark.parametrize(("n_layers", "fits"), [(11, True), (13, False)])
def test_a_model_without_room_for_batches_does_not_fit(n_layers, fits):
    """A share of each device stays free, and on the first one room for a layer to come."""
    assert (limits_of([8 * GIB, 8 * GIB], [GIB] * n_layers) is not None) == fits


def test_of_a_model_of_unknown_size_only_the_room_counts():
    """One of the hub that is not here yet."""
    assert limits_of([10 * GIB] * 2, None) == [8 * GIB] * 2


# -- orders ------------------------------------------------------------------------------------------------------


def test_an_order_survives_the_pipe():
    """With arrays of all shapes and types, empty ones too, and what follows it."""
    arrays = [np.arange(6).reshape(2, 3), np.zeros((0, 4), np.float32), np.array([True]), np.array(7, np.int32)]
    one, two = Order("read", arrays, {"length": None, "names": ["a"]}), Order("drop")
    stream = io.BufferedReader(io.BytesIO(orders.encode(one) + orders.encode(two)))
    found = orders.read(stream)
    assert (found.name, found.values) == ("read", {"length": None, "names": ["a"]})
    for array, expected in zip(found.arrays, arrays, strict=True):
        np.testing.assert_array_equal(array, expected)
        assert array.dtype == expected.dtype
    assert orders.read(stream).name == "drop"
    assert orders.read(stream) is None


def test_a_torn_order_is_none():
    """Rank 0 died while it wrote."""
    whole = orders.encode(Order("read", [np.arange(100)], {}))
    for length in (0, 5, 30, len(whole) - 1):
        assert orders.read(io.BufferedReader(io.BytesIO(whole[:length]))) is None


# -- shortages ---------------------------------------------------------------------------------------------------


def test_each_shortage_halves_what_the_next_process_takes_for_a_batch(tmp_path):
    """Down to the least; another model's budget is another's; and where nothing can be kept, nothing is promised."""
    name, folder = {"weights": "a"}, tmp_path / "not" / "there" / "yet"
    assert budget.kept_after_shortage(folder, name) == budget.LAST_PROBE
    assert budget.keep_less(folder, name, 1000)
    assert budget.kept_after_shortage(folder, name) == 500
    assert budget.kept_after_shortage(folder, {"weights": "b"}) == budget.LAST_PROBE
    assert not budget.keep_less(folder, name, budget.LEAST)
    (tmp_path / "file").touch()
    assert not budget.keep_less(tmp_path / "file", name, 1000)


def test_ranks_that_end_while_probing_probe_less_each_time(tmp_path):
    """Until what is tried fits: such a shortage ends the process, and a limit on what was found would come too late."""
    name, fits, tried = {"weights": "a"}, 700, []

    def run(tokens):
        tried.append(tokens)
        if tokens > fits:
            budget.keep_less(tmp_path, name, tokens)
            raise SystemExit

    starts = 0
    while starts < 3:
        starts += 1
        with suppress(SystemExit):
            found = budget.find(tmp_path, name, run, Unknown(), budget.kept_after_shortage(tmp_path, name))
            break
    assert starts == 2
    assert found.tokens <= fits
    assert sum(tokens > fits for tokens in tried) == 1


class Unknown:
    """The memory of a device that tells nothing."""

    room_bytes, peak_bytes = GIB, 0

    def reset_peak(self):
        """Do nothing."""

    def release(self):
        """Do nothing."""


def test_a_shortage_is_no_evidence_against_rows_unless_one_was_alone():
    """A lost rank is, as it may have been a row that killed it."""
    assert ending_of(EXIT_RANK_FULL).kind == "stopped"
    assert ending_of(EXIT_ROW_FULL).kind == "died"
    assert ending_of(EXIT_RANK_LOST).kind == "died"
