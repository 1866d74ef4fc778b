"""The graph of a compressed model, which every exporter reads: the calls of one forward, in order."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import nn


@dataclass(frozen=True)
class Step:
    """One call.

    Attributes:
        name: the layer's dotted name, or a description such as "add in 'block1'".
        inputs: numbers of the input values: 0 is the model's input, s + 1 the result of step s.
        shape: the shape of its result, without the batch axis.
    """

    name: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class LayerStep(Step):
    """A call of a layer, with one value for each of its ``input_quantizers``; ``batch_axis`` is that of the layer's output tensor."""

    layer: nn.Module
    batch_axis: int = 0


@dataclass(frozen=True)
class ConstantStep(Step):
    """Values that do not depend on the model's input: float64 of ``shape``, which broadcast with other values."""

    constants: np.ndarray


@dataclass(frozen=True)
class MoveStep(Step):
    """Moved or selected values: ``index`` has the shape of the result and holds positions in the concatenated inputs; -1 stands for a zero.

    ``sizes`` are the numbers of values of the inputs.
    """

    index: np.ndarray
    sizes: tuple[int, ...]

    @property
    def reshapes(self) -> bool:
        """Whether the step keeps all values of one input in their order."""
        return self.sizes == (self.index.size,) and np.array_equal(self.index.ravel(), np.arange(self.index.size))


@dataclass(frozen=True)
class SumStep(Step):
    """The sum of the inputs, each with its sign; shapes broadcast."""

    signs: tuple[int, ...]


@dataclass(frozen=True)
class ScaleStep(Step):
    """The input times a power of two, or times the negative of one."""

    factor: float


@dataclass(frozen=True)
class ReduceStep(Step):
    """The sum, or the largest or smallest value, over some axes of the input.

    ``dims`` are the axes, counted without the batch axis; ``keepdim`` keeps them with size 1.
    """

    kind: Literal["sum", "max", "min"]
    dims: tuple[int, ...]
    keepdim: bool


@dataclass(frozen=True)
class Graph:
    """The steps of a model, the shape of its input without the batch axis, and the index of the value that it returns."""

    steps: tuple[Step, ...]
    input_shape: tuple[int, ...]
    output: int

    @property
    def layers(self) -> Iterator[LayerStep]:
        """The steps that are layers."""
        return (step for step in self.steps if isinstance(step, LayerStep))

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the output, without the batch axis."""
        return self.shape(self.output)

    def shape(self, value: int) -> tuple[int, ...]:
        """Return the shape of a value, without the batch axis."""
        return self.steps[value - 1].shape if value else self.input_shape
