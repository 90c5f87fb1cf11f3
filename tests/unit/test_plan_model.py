"""What ``penstock plan-model`` makes of a blueprint and of devices."""

from __future__ import annotations

import json

import pytest

from tasks.errors import UsageError
from tasks.messages import ModelSpec
from tasks.settings import GIB, MIB, Settings
from tests.machines import Machine, gpu_line
from workers import plan_model
from workers.planning import CUDA_SLOT_BYTES, SLOT_BYTES
from workers.sharding.spreading import place_units
from workers.sizing.blueprint import Blueprint, Tensor
from workers.sizing.choices import choices, nearest, suggest
from workers.sizing.numbers import Numbers
from workers.sizing.rooms import Room, find_rooms, parse_sizes
from workers.sizing.sharing import Share, shares
from workers.sizing.showing import ModelPlan, describe, show

BF16 = Numbers("bf16")


def decoder(*, layers: int = 4, heads: tuple[int, int] = (8, 4), has_plan: bool = True) -> Blueprint:
    """Return a model of as many layers of 100 MiB in bf16, and an embedding of 50 MiB."""
    tensors = [Tensor("embed.weight", (25 * 1024, 1024), "embed", split=0 if has_plan else None, group="embed")]
    for i in range(layers):
        place = f"layers.{i}"
        tensors += [
            Tensor(f"{place}.up.weight", (25 * 1024, 1024), place, is_linear=True, split=0, group=place),
            Tensor(f"{place}.down.weight", (1024, 25 * 1024), place, is_linear=True, split=1, group=place),
        ]
    tensors.append(Tensor("norm.weight", (1024,), "norm"))
    tensors.append(Tensor("norm.frequencies", (64,), "norm", number_bytes=4))
    return Blueprint(tuple(tensors), heads, () if has_plan else (("tensor", "no tensor-parallel plan"),))


def gpus(*sizes: float) -> list[Room]:
    """Return GPUs with so many GiB for weights and batches."""
    return [Room(f"cuda:{i}", False, 100 * GIB, round(size * GIB) + CUDA_SLOT_BYTES) for i, size in enumerate(sizes)]


def plan(blueprint: Blueprint, rooms: list[Room], **settings) -> ModelPlan:
    """Plan a model that is called /m."""
    spec = ModelSpec(engine="sentence_transformer", name="/m")
    return ModelPlan(spec, Settings(**settings), blueprint, rooms, choices(blueprint, rooms))


def test_numbers_take_the_bytes_of_their_precision():
    """But for those with a type of their own, as the frequencies of rotary positions."""
    (alone,) = shares(decoder(), "none", Numbers("fp32"), [GIB])
    assert alone.weights_bytes == 2 * 450 * MIB + 4 * 1024 + 64 * 4
    (half,) = shares(decoder(), "none", BF16, [GIB])
    assert half.weights_bytes == 450 * MIB + 2 * 1024 + 64 * 4


@pytest.mark.parametrize(
    ("quantize", "linear_bytes"),
    [
        ("int8", 4 * (50 * MIB + 4 * 26 * 1024)),
        ("int4", 4 * (25 * MIB + 4 * 2 * 25 * MIB // 64)),
    ],
)
def test_only_linear_weights_are_quantised(quantize, linear_bytes):
    """They get smaller, with a scale a row or a group; the embedding stays as it is."""
    (alone,) = shares(decoder(), "none", Numbers("bf16", quantize), [GIB])
    assert alone.weights_bytes == linear_bytes + 50 * MIB + 2 * 1024 + 64 * 4


def test_tensor_parallelism_parts_what_the_plan_names():
    """The rest is whole on each device, and the last device has what is left over."""
    found = shares(decoder(), "tensor", BF16, [GIB] * 2)
    assert [share.weights_bytes for share in found] == [225 * MIB + 2 * 1024 + 64 * 4] * 2
    uneven = Blueprint((Tensor("weight", (10, 3), "w", split=0),))
    assert [share.weights_bytes for share in shares(uneven, "tensor", BF16, [GIB] * 4)] == [18, 18, 18, 6]


def test_fsdp_parts_all_and_gathers_two_layers():
    """One computes while the next arrives; what is never let go counts, too."""
    found = shares(decoder(), "fsdp", BF16, [GIB] * 4)
    assert found[0].weights_bytes == pytest.approx(450 * MIB / 4, rel=1e-3)
    assert found[0].gathered_bytes == 2 * 100 * MIB + 2 * 1024 + 64 * 4


def test_a_model_that_fsdp_cannot_take_apart_is_gathered_whole():
    """Its weights are parted, but all of them come together when it computes."""
    whole = Blueprint(tuple(Tensor(f"{i}", (MIB,), f"{i}") for i in range(8)))
    (first, *_) = shares(whole, "fsdp", BF16, [GIB] * 4)
    assert (first.weights_bytes, first.gathered_bytes) == (4 * MIB, 16 * MIB)


@pytest.mark.parametrize(
    ("sizes", "limits", "held"),
    [
        ([5, 10, 10, 10, 10, 1], [30, 40], [15, 31]),
        ([5, 10, 10, 10, 10, 1], [100, 40], [46, 0]),
        ([10] * 4, [25, 10, 40], [10, 10, 20]),
        ([10] * 4, [5, 5, 5], [0, 0, 40]),
        ([], [10, 10], [0, 0]),
    ],
)
def test_whole_layers_fill_devices_in_their_order(sizes, limits, held):
    """The first keeps room for one that is still to come; what finds none is too much on the last."""
    assert place_units(sizes, limits) == held


def test_the_first_device_is_left_room_for_batches():
    """It gets less than an even part of the layers."""
    first, *others = shares(decoder(layers=40), "auto", BF16, [2 * GIB] * 4)
    assert first.weights_bytes < 4050 * MIB / 4
    assert first.weights_bytes + sum(share.weights_bytes for share in others) == 4050 * MIB + 2 * 1024 + 64 * 4
    assert all(share.weights_bytes <= share.most_bytes for share in (first, *others))


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("24GiB", [24 * GIB]),
        ("24GiB, 80GB", [24 * GIB, 80 * 10**9]),
        ("8x80GiB", [80 * GIB] * 8),
        ("2x512MiB,1.5GiB", [512 * MIB, 512 * MIB, 3 * GIB // 2]),
    ],
)
def test_sizes_are_written_as_people_write_them(text, sizes):
    """With their unit, and how many there are of it."""
    assert parse_sizes(text) == sizes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "24",
        "24G",
        "GiB",
        "-1GiB",
        "0GiB",
        "24GiB,",
        "0x24GiB",
        "65x1GiB",
        "x" * 999,
        "9" * 400 + "GiB",
        "9" * 5000 + "x1GiB",
    ],
)
def test_what_is_no_size_is_one_line(text):
    """That says how to write one."""
    with pytest.raises(UsageError, match=r"^--device-memory ") as caught:
        parse_sizes(text)
    assert len(str(caught.value)) < 300


def test_devices_of_other_machines_are_empty(monkeypatch):
    """The memory ratio holds for them, too."""
    rooms = find_rooms(Settings(memory_ratio=0.5), "24GiB,2x80GiB")
    assert [(room.name, room.total_bytes, room.limit_bytes) for room in rooms] == [
        ("cuda:0", 24 * GIB, 12 * GIB),
        ("cuda:1", 80 * GIB, 40 * GIB),
        ("cuda:2", 80 * GIB, 40 * GIB),
    ]


def test_devices_of_this_machine_have_what_others_left(monkeypatch, tmp_path):
    """As a worker that starts finds them."""
    host = Machine(monkeypatch, tmp_path)
    host.has_gpus(gpu_line(0, free_mib=100_000) + gpu_line(1))
    rooms = find_rooms(Settings(), None)
    assert [room.name for room in rooms] == ["cuda:0", "cuda:1"]
    assert rooms[0].limit_bytes == 100_000 * MIB - round(0.2 * 143_771 * MIB)
    assert rooms[1].limit_bytes > rooms[0].limit_bytes


@pytest.mark.parametrize(
    ("rooms", "has_plan", "numbers", "shard"),
    [
        ((10, 10), True, "bf16", "none"),
        ((10, 0.2), True, "bf16", "none"),
        ((0.4, 0.4), True, "bf16", "tensor"),
        ((0.4, 0.4), False, "bf16", "auto"),
        ((0.45, 0.45), True, "bf16", "tensor"),
        ((0.28, 0.1), True, "int8", "none"),
        ((0.2, 0.02), True, "int4", "none"),
        ((0.3,), True, "int8", "none"),
    ],
)
def test_what_changes_results_least_is_suggested(rooms, has_plan, numbers, shard):
    """One device, then several, then quantised weights; and never a device without room for batches, if need not be."""
    best = suggest(choices(decoder(has_plan=has_plan), gpus(*rooms)))
    assert (str(best.numbers), best.shard) == (numbers, shard)


def test_a_device_that_is_too_small_is_left_out():
    """A slot of its own needs one device alone."""
    made = plan(decoder(), gpus(10, 0.2, 10))
    assert describe(made)["command"] == "penstock worker --model /m --devices cuda:0,cuda:2"


@pytest.mark.parametrize(
    ("rooms", "settings", "command"),
    [
        (
            gpus(0.4, 0.4),
            {"operation": "score", "memory_ratio": 0.9, "trust_remote_code": True},
            "--operation score --devices cuda:0,cuda:1 --shard tensor --memory-ratio 0.9 --trust-remote-code",
        ),
        ([Room("cpu", True, 8 * GIB, 2 * GIB)], {}, "--devices cpu"),
        ([Room("cpu", True, 8 * GIB, (620 + 700) * MIB)], {}, "--devices cpu --precision bf16"),
        (gpus(0.3), {}, "--devices cuda:0 --quantize int8"),
        (gpus(10), {"precision": "fp32"}, "--devices cuda:0 --precision bf16"),
        ([Room("cpu", True, 8 * GIB, 2 * GIB)], {"precision": "bf16"}, "--devices cpu --precision fp32"),
    ],
)
def test_the_command_has_all_that_a_worker_does_not_choose_itself(rooms, settings, command):
    """And nothing else."""
    assert describe(plan(decoder(), rooms, **settings))["command"] == f"penstock worker --model /m {command}"


def test_heads_that_do_not_divide_are_said():
    """Attention is parted by whole heads."""
    found = choices(decoder(heads=(9, 3)), gpus(9, 9))
    reasons = {choice.reason for choice in found if choice.shard == "tensor" and not choice.numbers.quantize}
    assert reasons == {"9 and 3 heads do not divide by 2"}


def test_nothing_that_fits_is_said_with_what_lacks(capsys, monkeypatch):
    """And there is no command."""
    monkeypatch.setenv("COLUMNS", "100")
    made = plan(decoder(layers=40), gpus(0.5, 0.5))
    assert suggest(made.choices) is None
    assert describe(made)["command"] is None
    closest = nearest(made.choices)
    assert (str(closest.numbers), closest.shard) == ("int4", "none")
    show(made)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("Nothing fits: int4 on one device comes closest and lacks 0.")


def test_a_person_sees_a_line_for_each_choice(capsys, monkeypatch):
    """No wider than a hundred columns, and at its end what to type."""
    monkeypatch.setenv("COLUMNS", "100")
    show(plan(decoder(has_plan=False), gpus(0.41, 0.41)))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert [line for line in lines if "│ bf16       │ none   │ 0.44 GiB" in line and "no: 0.03 GiB too much" in line]
    assert [line for line in lines if "│ bf16       │ tensor │ -" in line and "no: no tensor-parallel plan" in line]
    assert lines[-2] == ("Suggested: bf16 with --shard auto over 2 devices, which leaves 0.17 GiB for batches.")
    assert lines[-1] == "penstock worker --model /m --devices cuda:0,cuda:1 --shard auto"


def test_a_mistake_in_the_command_is_one_line(capsys, monkeypatch, tmp_path):
    """Before torch is loaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PENSTOCK_MODEL", "some/model")
    assert plan_model.main(["--device-memory=lots"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("penstock plan-model: --device-memory lots: 'lots' is no size.")


def test_a_cpu_needs_room_for_the_weights_as_they_are_read(capsys, monkeypatch):
    """They are quantised where they lie, so what does not fit before never fits."""
    monkeypatch.setenv("COLUMNS", "100")
    made = plan(decoder(), [Room("cpu", True, 8 * GIB, SLOT_BYTES + 430 * MIB)])
    assert suggest(made.choices) is None
    show(made)
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if "│ int8 " in line and "no: 0.46 GiB too much to load" in line]
    assert str(suggest(choices(decoder(), gpus(430 / 1024))).numbers) == "int8"


def test_a_model_without_linear_layers_cannot_be_quantised():
    """As GPT-2, LASER and static embeddings: a worker would refuse it."""
    found = choices(Blueprint((Tensor("weight", (1024, 1024), "w"),)), gpus(9, 9))
    reasons = {choice.reason for choice in found if choice.numbers.quantize}
    assert reasons == {"no linear layers in repeated blocks"}


def test_a_slot_that_takes_more_than_a_device_lacks_that_too():
    """Of a device without room for a slot, all weights are too much, and the rest of the slot."""
    (fp32, *_) = choices(decoder(), [Room("cuda:0", False, 4 * GIB, CUDA_SLOT_BYTES - GIB)])
    assert fp32.lacking_bytes == pytest.approx(GIB + 900 * MIB, rel=0.001)


def test_whole_layers_beyond_the_limits_of_a_worker_do_not_fit():
    """Although the device has room: the worker leaves some for batches."""
    share = Share(weights_bytes=90, most_bytes=80)
    assert (share.left_bytes(100), share.lacking_bytes(100)) == (10, 10)
    assert Share(weights_bytes=80, most_bytes=80).lacking_bytes(100) == 0


@pytest.mark.parametrize(
    ("settings", "unset"),
    [
        ({}, []),
        ({"shard": "tensor"}, ["shard"]),
        ({"quantize": "int8", "workers": 2}, ["quantize", "workers"]),
    ],
)
def test_settings_that_the_command_cannot_undo_are_named(capsys, settings, unset):
    """A worker would be another than the suggested one."""
    made = plan(decoder(), gpus(10), **settings)
    assert describe(made)["unset"] == unset
    show(made)
    assert capsys.readouterr().out.count("First unset PENSTOCK_") == len(unset)


def test_a_number_of_slots_hides_no_device(monkeypatch, tmp_path):
    """It is for embedded runs."""
    Machine(monkeypatch, tmp_path).has_gpus(gpu_line(0) + gpu_line(1))
    assert len(find_rooms(Settings(workers=1), None)) == 2


def test_a_machine_reads_bytes_of_each_device():
    """One list for each choice, in the order of the devices."""
    said = json.loads(json.dumps(describe(plan(decoder(), gpus(0.4, 0.4)))))
    (tensor,) = [one for one in said["choices"] if one["shard"] == "tensor" and one["numbers"] == "bf16"]
    assert tensor["suggested"] is True
    assert tensor["fits_on"] == ["cuda:0", "cuda:1"]
    for i, device in enumerate(said["devices"]):
        rest = device["room_bytes"] - device["beside_bytes"] - tensor["weights_bytes"][i] - tensor["gathered_bytes"][i]
        assert tensor["left_bytes"][i] == rest
    assert sum(one["suggested"] for one in said["choices"]) == 1
