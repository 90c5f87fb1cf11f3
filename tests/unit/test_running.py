"""Running batches: halves where memory runs out, and nothing else is hidden."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tests.unit.test_budget import Device
from workers import running
from workers.budget import TokenBudget
from workers.memory import is_out_of_memory
from workers.running import run_batches, run_patiently


def runs(lengths, tokens, most=10**9, *, pads=True):
    """Run rows with a budget on a device that takes batches of at most ``most`` tokens."""
    held, started = TokenBudget(tokens, Device()), []

    def run(batch):
        if lengths[batch].max() * len(batch) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return lengths[batch]

    return list(run_batches(lengths, held, run, started.append, pads=pads)), held, started


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    """Do not wait for a neighbour."""
    monkeypatch.setattr(running, "PAUSE_S", 0.0)


@example([1, 1], 16, 1)
@given(st.lists(st.integers(1, 300), max_size=100), st.integers(16, 4000), st.integers(1, 2000))
def test_every_row_is_run_or_has_no_memory_alone(lengths, tokens, most):
    """Whatever the device takes, each row comes once, and only rows beyond its memory come without an output."""
    lengths = np.array(lengths, np.int64)
    ran, _, _ = runs(lengths, tokens, most)
    assert sorted(row for batch in ran for row in batch.rows.tolist()) == list(range(len(lengths)))
    for batch in ran:
        if batch.output is None:
            assert (len(batch.rows), lengths[batch.rows[0]] > most) == (1, True)
        else:
            assert (batch.output == lengths[batch.rows]).all()


def test_a_batch_without_memory_is_halved_and_the_rest_goes_smaller():
    """One shortage, not one for each batch that was planned before."""
    ran, held, started = runs(np.full(64, 10), 320, most=200)
    assert [len(batch.rows) for batch in ran] == [16] * 4
    assert held.shortages == 1
    assert started == [320, 160, 160, 160, 160]


def test_without_padding_true_tokens_count():
    """A long row does not make short ones dear."""
    ran, _, _ = runs(np.array([100, 10, 10, 10]), 130, pads=False)
    assert [batch.tokens for batch in ran] == [130]


def test_a_single_row_gets_another_chance():
    """A neighbour needed the memory for a moment."""
    answers = iter([None, "vector"])

    def run(_):
        answer = next(answers)
        if answer is None:
            raise MemoryError
        return answer

    held = TokenBudget(100, Device())
    (ran,) = run_batches(np.array([3]), held, run, lambda _: None, pads=True)
    assert (ran.output, held.shortages) == ("vector", 1)


def test_what_cannot_be_halved_gets_another_chance_too():
    """And no third one."""

    def fail():
        raise MemoryError

    held = TokenBudget(100, Device())
    assert run_patiently(lambda: "vectors", held) == "vectors"
    assert run_patiently(fail, held) is None
    assert held.shortages == 1


def test_any_other_fault_is_not_taken_for_a_shortage():
    """FlagEmbedding takes every RuntimeError for one."""

    def run(_):
        raise RuntimeError("CUDA error: device-side assert triggered")

    with pytest.raises(RuntimeError, match="assert"):
        list(run_batches(np.array([3, 3]), TokenBudget(100, Device()), run, lambda _: None, pads=True))


@pytest.mark.parametrize(
    ("fault", "is_shortage"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA driver error: out of memory"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("not enough memory"), False),
    ],
)
def test_only_the_device_s_own_errors_mean_a_shortage(fault, is_shortage):
    """By class, or by what torch and CUDA's libraries write."""
    assert is_out_of_memory(fault) is is_shortage
