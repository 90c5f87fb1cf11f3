"""LASER2: an LSTM that reads a text in both directions; a vector is the largest value over time of each number.

A batch has its tokens time by time: first the first token of all rows, then the second of all that have one. So
there is no padding, neither in the products nor in the memory. On a CPU each step is two matrix products of layers
that penstock may pack (workers/engines/packed_linear.py); torch's own LSTM lays the weights out anew at every
step and was half as fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import LSTM, Embedding, Linear, Module, ModuleList
from torch.nn.utils.rnn import PackedSequence

from workers.engines.laser.text_steps import PAD


class BiLstm(Module):
    """The encoder of LASER2.

    Args:
        checkpoint: the published file's content.
        dtype: of the numbers.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, checkpoint: dict[str, Any], dtype: torch.dtype, device: str) -> None:
        super().__init__()
        published = _Published(checkpoint["params"])
        published.load_state_dict(checkpoint["model"], assign=True)
        published.to(device, dtype).requires_grad_(requires_grad=False)
        self.embed_tokens = published.embed_tokens
        lstm = published.lstm
        self.layers = ModuleList(_Layer(lstm, layer) for layer in range(lstm.num_layers))
        # cuDNN runs all layers and steps in a few kernels. Not yet run on a GPU.
        self.fused = lstm if device != "cpu" else None

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor, *, is_fixed: bool = False) -> torch.Tensor:
        """Encode rows.

        Args:
            tokens: (n_rows, n_tokens) int64, filled up with ``PAD`` on the right.
            lengths: (n_rows,) tokens of each row, on the CPU.
            is_fixed: compute the padding too, so that all shapes depend on that of ``tokens`` alone.

        Returns:
            (n_rows, dim)
        """
        order = torch.argsort(lengths, descending=True, stable=True)
        steps = _Steps.of(tokens[order.to(tokens.device)], lengths[order], is_fixed=is_fixed)
        values = self.embed_tokens(steps.tokens)
        if self.fused is not None and not is_fixed:
            self.fused.flatten_parameters()
            values = self.fused(PackedSequence(values, torch.tensor(steps.sizes)))[0].data
        else:
            for layer in self.layers:
                values = layer(values, steps)
        largest = steps.largest(values)
        return torch.empty_like(largest).index_copy_(0, order.to(largest.device), largest)


class _Published(Module):
    """The weights by their published names, without memory until they are put in."""

    def __init__(self, params: dict[str, Any]) -> None:
        super().__init__()
        with torch.device("meta"):
            self.embed_tokens = Embedding(params["num_embeddings"], params["embed_dim"], params["padding_idx"])
            self.lstm = LSTM(
                params["embed_dim"], params["hidden_size"], params["num_layers"], bidirectional=params["bidirectional"]
            )
        if not self.lstm.bidirectional:
            raise ValueError("it reads in one direction, and LASER2 in both")


@dataclass(frozen=True)
class _Steps:
    """The tokens of a batch, time by time.

    Attributes:
        tokens: (n_tokens,) int64.
        sizes: how many of them each step has: those rows, from the first on, that are not at their end.
        starts: where each step's begin.
        alive: (n_steps, n_rows, 1) which rows are not at their end; None where ``sizes`` says it.
    """

    tokens: torch.Tensor
    sizes: list[int]
    starts: list[int]
    alive: torch.Tensor | None

    @classmethod
    def of(cls, tokens: torch.Tensor, lengths: torch.Tensor, *, is_fixed: bool) -> _Steps:
        """Sort the tokens of a batch, (n_rows, n_tokens), longest rows first."""
        n_rows, n_steps = tokens.shape
        alive = torch.arange(n_steps)[:, None] < lengths[None, :]
        sizes = [n_rows] * n_steps if is_fixed else alive.sum(1).tolist()
        starts = [0]
        for size in sizes[:-1]:
            starts.append(starts[-1] + size)
        alive = alive.to(tokens.device)
        by_time = tokens.t()
        if is_fixed:
            return cls(by_time.reshape(-1), sizes, starts, alive.unsqueeze(2))
        return cls(by_time[alive], sizes, starts, None)

    def largest(self, values: torch.Tensor) -> torch.Tensor:
        """Return the largest value over time of each row's numbers: (n_tokens, dim) -> (n_rows, dim)."""
        masked = values.masked_fill((self.tokens == PAD).unsqueeze(1), -torch.inf)
        largest = masked[: self.sizes[0]].clone()
        for start, size in zip(self.starts[1:], self.sizes[1:], strict=True):
            torch.maximum(largest[:size], masked[start : start + size], out=largest[:size])
        return largest


class _Layer(Module):
    """One layer of an LSTM: what reads each row from its beginning, and what from its end."""

    def __init__(self, lstm: LSTM, number: int) -> None:
        super().__init__()
        self.forth = _Direction(lstm, f"l{number}", is_backward=False)
        self.back = _Direction(lstm, f"l{number}_reverse", is_backward=True)

    def forward(self, values: torch.Tensor, steps: _Steps) -> torch.Tensor:
        """(n_tokens, n_inputs) -> (n_tokens, 2 * hidden)."""
        return torch.cat([self.forth(values, steps), self.back(values, steps)], dim=1)


class _Direction(Module):
    """One direction of one layer of an LSTM."""

    def __init__(self, lstm: LSTM, name: str, *, is_backward: bool) -> None:
        super().__init__()
        self._is_backward = is_backward
        self._hidden = lstm.hidden_size
        self.of_input = _linear(
            getattr(lstm, f"weight_ih_{name}"), getattr(lstm, f"bias_ih_{name}") + getattr(lstm, f"bias_hh_{name}")
        )
        self.of_state = _linear(getattr(lstm, f"weight_hh_{name}"))

    def forward(self, values: torch.Tensor, steps: _Steps) -> torch.Tensor:
        """(n_tokens, n_inputs) -> (n_tokens, hidden)."""
        gates: torch.Tensor = self.of_input(values)
        hidden = self._hidden
        outputs = gates.new_empty(len(gates), hidden)
        state, cell = (gates.new_zeros(steps.sizes[0], hidden) for _ in range(2))
        times = range(len(steps.sizes))
        for time in reversed(times) if self._is_backward else times:
            start, size = steps.starts[time], steps.sizes[time]
            step = self.of_state(state[:size]).add_(gates[start : start + size])
            step[:, : 2 * hidden].sigmoid_()  # how much to take in, and how much to keep
            step[:, 2 * hidden : 3 * hidden].tanh_()
            step[:, 3 * hidden :].sigmoid_()  # how much to show
            taken, kept, new, shown = step.chunk(4, dim=1)
            cell[:size].mul_(kept).addcmul_(taken, new)
            if steps.alive is not None and self._is_backward:
                cell.mul_(steps.alive[time])  # what was read so far was padding
            torch.mul(shown, cell[:size].tanh(), out=state[:size])
            outputs[start : start + size] = state[:size]
        return outputs


def _linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
    """Make a layer of weights that are there, without a copy."""
    with torch.device("meta"):
        layer = Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = torch.nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        layer.bias = torch.nn.Parameter(bias.detach(), requires_grad=False)
    return layer
