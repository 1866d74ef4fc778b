"""Recurrent layers, unrolled over time and built from layers that ``compress`` replaces one by one.

LSTM: S. Hochreiter, J. Schmidhuber, "Long Short-Term Memory", Neural Computation 9(8), 1997. GRU: K. Cho et al., arXiv 1406.1078.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pquant.layers.composite import Composite, dense
from pquant.layers.merge import Merge


class _Cell(Composite):
    """One step of a recurrence. The dense layer ``ih`` computes gates from the input, ``hh`` from the hidden state; each has its own bias.

    The caller computes the gates of the input for all steps at once, outside :meth:`step`.
    """

    states: ClassVar[int] = 1
    hidden_size: int
    ih: nn.Linear
    hh: nn.Linear

    def take(self, layer: Any) -> None:
        """Build the layers from the parameters of a torch cell."""
        self.take_settings(layer)
        self.take_parameters(layer, "")

    def take_parameters(self, layer: Any, suffix: str) -> None:
        """Build the layers from those parameters of ``layer`` whose names end with ``suffix``, such as ``_l0_reverse``."""
        for name in ("ih", "hh"):
            setattr(self, name, dense(getattr(layer, f"weight_{name}{suffix}"), getattr(layer, f"bias_{name}{suffix}", None)))
        projection = getattr(layer, f"weight_hr{suffix}", None)
        self.proj = None if projection is None else dense(projection, None)
        self.hidden_size = self.hh.weight.shape[1]
        self.make_gates(layer)

    def make_gates(self, layer: Any) -> None:
        """Build the layers that follow ``ih`` and ``hh``."""
        raise NotImplementedError

    def step(self, gates: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the state after a step, the hidden state first; ``gates``, (batch, gates), are those of the input."""
        raise NotImplementedError

    def start(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the state before the first step, all 0, for inputs (..., batch, features)."""
        return (x.new_zeros(x.shape[-2], self.hidden_size),)

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """Return the state after one step, for an input (batch, features) or (features,), as torch's cell does."""
        x = input if input.ndim == 2 else input.unsqueeze(0)
        given = None if hx is None else hx if isinstance(hx, tuple) else (hx,)
        state = self.start(x) if given is None else tuple(part if part.ndim == 2 else part.unsqueeze(0) for part in given)
        after = self.step(self.ih(x), state)
        after = after if input.ndim == 2 else tuple(part.squeeze(0) for part in after)
        return after if self.states == 2 else after[0]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in ("ih", "hh"):
            for kind in ("weight", "bias"):
                _rename(state_dict, f"{prefix}{kind}_{name}", f"{prefix}{name}.{kind}")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _rename(state_dict: dict[str, Any], old: str, new: str) -> None:
    if old in state_dict:
        state_dict[new] = state_dict.pop(old)


class PQLSTMCell(_Cell):
    """``nn.LSTMCell``, with the product layers ``forget`` (gate, cell state), ``update`` (gate, candidate), ``output`` (gate, tanh of cell state)."""

    float_class = nn.LSTMCell
    states = 2
    proj: nn.Linear | None

    def make_gates(self, layer: Any) -> None:
        """Make the activations and the products."""
        self.sigmoid, self.tanh, self.tanh_cell = nn.Sigmoid(), nn.Tanh(), nn.Tanh()
        self.forget, self.update, self.output = Merge("mul"), Merge("mul"), Merge("mul")

    def start(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the hidden and the cell state before the first step."""
        return *super().start(x), x.new_zeros(x.shape[-2], self.hh.weight.shape[0] // 4)

    def step(self, gates: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the hidden and the cell state after a step."""
        hidden, cell = state
        i, f, g, o = (gates + self.hh(hidden)).chunk(4, -1)
        i, f, o = self.sigmoid(torch.cat((i, f, o), -1)).chunk(3, -1)
        cell = self.forget(f, cell) + self.update(i, self.tanh(g))
        hidden = self.output(o, self.tanh_cell(cell))
        return hidden if self.proj is None else self.proj(hidden), cell


class PQGRUCell(_Cell):
    """``nn.GRUCell``, with the product layers ``reset`` (gate, hidden part of the candidate) and ``update`` (gate, state minus candidate)."""

    float_class = nn.GRUCell

    def make_gates(self, layer: Any) -> None:
        """Make the activations and the products."""
        self.sigmoid, self.tanh = nn.Sigmoid(), nn.Tanh()
        self.reset, self.update = Merge("mul"), Merge("mul")

    def step(self, gates: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the hidden state n + z * (h - n) after a step; h is the state before it, n the candidate and z the update gate."""
        (hidden,) = state
        of_input, of_state = gates.chunk(3, -1), self.hh(hidden).chunk(3, -1)
        reset, update = self.sigmoid(torch.cat((of_input[0] + of_state[0], of_input[1] + of_state[1]), -1)).chunk(2, -1)
        candidate = self.tanh(of_input[2] + self.reset(reset, of_state[2]))
        return (candidate + self.update(update, hidden - candidate),)


class PQRNNCell(_Cell):
    """``nn.RNNCell``, with tanh or ReLU."""

    float_class = nn.RNNCell

    def make_gates(self, layer: Any) -> None:
        """Build the activation."""
        kind = getattr(layer, "nonlinearity", "tanh")
        self.activation: nn.Module = nn.ReLU() if kind == "relu" else nn.Tanh()

    def step(self, gates: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the hidden state after a step."""
        return (self.activation(gates + self.hh(state[0])),)


class _Recurrent(Composite):
    """A stack of cells over time: the cell ``l0`` and, with two directions or more layers, ``l0_reverse``, ``l1``...

    The float module computes what torch's layer computes for tensors, and loads its state dict. It does not take packed sequences.
    """

    cell: ClassVar[type[_Cell]]
    num_layers: int
    batch_first: bool
    bidirectional: bool

    def take(self, layer: Any) -> None:
        """Build a cell for each layer and direction from the parameters of ``layer``."""
        self.take_settings(layer)
        self.drop = nn.Dropout(layer.dropout)
        for name in self._names():
            cell = self.cell.__new__(self.cell)
            nn.Module.__init__(cell)
            cell.take_parameters(layer, f"_{name}")
            self.add_module(name, cell)

    def flatten_parameters(self) -> None:
        """Do nothing; the method exists because models call it on torch's layer, whose weights are one block of memory on a GPU."""

    def _names(self) -> list[str]:
        return [f"l{at}{direction}" for at in range(self.num_layers) for direction in ("", "_reverse")[: 1 + self.bidirectional]]

    def forward(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        """Return (hidden states of all steps, last states); arguments and shapes are those of torch's layer.

        Raises:
            TypeError: ``input`` is not a tensor.
        """
        if not isinstance(input, Tensor):
            raise TypeError(f"a quantized {self.float_class.__name__} takes tensors, got a {type(input).__name__}: pad the sequences to one length")
        batched = input.ndim == 3
        x = input if batched else input.unsqueeze(1)
        x = x.transpose(0, 1) if self.batch_first and batched else x
        states = None if hx is None else [part if batched else part.unsqueeze(1) for part in (hx if isinstance(hx, tuple) else (hx,))]
        last: list[tuple[Tensor, ...]] = []
        for at, names in enumerate(self._by_layer()):
            x = x if at == 0 else self.drop(x)
            outputs = []
            for name in names:
                cell: Any = self.get_submodule(name)
                start = cell.start(x) if states is None else tuple(part[len(last)] for part in states)
                output, state = self._run(cell, x, start, name.endswith("_reverse"))
                outputs.append(output)
                last.append(state)
            x = torch.cat(outputs, -1)
        ends = [torch.stack(parts) for parts in zip(*last, strict=True)]
        if not batched:
            x, ends = x.squeeze(1), [part.squeeze(1) for part in ends]
        elif self.batch_first:
            x = x.transpose(0, 1)
        return x, ends[0] if self.cell.states == 1 else tuple(ends)

    def _by_layer(self) -> list[list[str]]:
        names, directions = self._names(), 1 + self.bidirectional
        return [names[at : at + directions] for at in range(0, len(names), directions)]

    @staticmethod
    def _run(cell: Any, x: Tensor, state: tuple[Tensor, ...], backwards: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the hidden states (steps, batch, features) of one cell for all steps, and its last state."""
        gates = cell.ih(x).unbind(0)
        hidden = []
        for at in reversed(range(len(gates))) if backwards else range(len(gates)):
            state = cell.step(gates[at], state)
            hidden.append(state[0])
        return torch.stack(hidden[::-1] if backwards else hidden), state

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in self._names():
            for old, new in (("ih", "ih"), ("hh", "hh"), ("hr", "proj")):
                for kind in ("weight", "bias"):
                    _rename(state_dict, f"{prefix}{kind}_{old}_{name}", f"{prefix}{name}.{new}.{kind}")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class PQLSTM(_Recurrent):
    """``nn.LSTM``, with projections too; see :class:`PQLSTMCell`."""

    float_class, cell = nn.LSTM, PQLSTMCell


class PQGRU(_Recurrent):
    """``nn.GRU``; see :class:`PQGRUCell`."""

    float_class, cell = nn.GRU, PQGRUCell


class PQRNN(_Recurrent):
    """``nn.RNN``; see :class:`PQRNNCell`."""

    float_class, cell = nn.RNN, PQRNNCell
