"""Base classes of the layers: quantizers around every layer, and the pruned and quantized weight of layers that have a weight."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from pquant.errors import ConfigError
from pquant.layers.modes import evaluating
from pquant.pruning.method import NoPruner, NoPruning, Pruner, PruningMethod
from pquant.quantization.ebops import BitRegularization, constant_bits
from pquant.quantization.fixed_point import HALF
from pquant.quantization.hgq import HGQQuantizer
from pquant.quantization.quantization import Counting, Quantization
from pquant.quantization.quantizer import NoQuantizer, Quantizer, TensorFormat
from pquant.training.stage import Horizon, Stage

Shape = tuple[int, ...]
PARAMETERS = ("weight_quantizer", "bias_quantizer")
NO_PRUNING = NoPruning()
NO_QUANTIZATION = Quantization(enable_quantization=False)


class Call(NamedTuple):
    """The shapes of one call of a layer in one forward of the model, for a batch of one example.

    Attributes:
        input: shape of the input, the batch axis included.
        output: shape of the output, the batch axis included.
        batch_axis: axis of the input whose size grows with the batch; None where no axis does. An axis that joins batch and positions, as after
            ``x.reshape(batch * positions, features)``, has the size ``positions`` for one example.
        channel_axis: axis of the input that holds its features, as a negative number; None where no axis does.
        others: shape and batch axis of each further input, for a layer with several inputs.
    """

    input: Shape
    output: Shape
    batch_axis: int | None = 0
    channel_axis: int | None = -1
    others: tuple[tuple[Shape, int | None], ...] = ()

    @property
    def shared(self) -> Shape:
        """Shape of the bit widths with one per input value: the input's shape with a batch axis of size 1, which is left out where it comes first."""
        shape = tuple(1 if axis == self.batch_axis else size for axis, size in enumerate(self.input))
        return shape[1:] if self.batch_axis == 0 else shape

    @property
    def operands(self) -> "tuple[Call, ...]":
        """The call once for each input of the layer, with the shape and batch axis of that input."""
        return (self, *(self._replace(input=shape, batch_axis=axis) for shape, axis in self.others))


Calls = tuple[Call, ...]
Widths = Callable[[Quantizer], Tensor]
"""A function that returns the bits of a quantizer, as EBOPs count them."""


class Cost(NamedTuple):
    """Counts for a part of a model in one forward on a batch: multiplications of matrix products and convolutions, and float values returned."""

    multiplications: int = 0
    activations: int = 0

    def __add__(self, other: Any) -> "Cost":
        """Return the sum of both."""
        return Cost(self.multiplications + other.multiplications, self.activations + other.activations)


def check_precision(dtypes: Mapping[str, torch.dtype]) -> None:
    """Raise a ConfigError if one of the dtypes of parameters, given by dotted name, is a half precision or complex."""
    for name, dtype in dtypes.items():
        if dtype in HALF:
            raise ConfigError(
                f"parameter '{name}' is {str(dtype).removeprefix('torch.')}, in which fixed-point values are not exact: use float32 values;"
                " training.precision=bf16 multiplies in bfloat16"
            )
        if dtype.is_complex:
            raise ConfigError(
                f"parameter '{name}' is complex, and fixed-point values are real: give the model real and imaginary parts as parameters"
            )


class QuantizedLayer(nn.Module):
    """A layer with a quantizer for its input and one for its output.

    A subclass also inherits from the torch layer that it replaces, and defines ``compute``. ``name`` is the dotted name of the layer in the model.
    ``calls`` are the calls of the layer in one forward of the model; they are empty without an example input. ``sources`` maps the name of an input
    quantizer to the quantizer that produced this input in an earlier layer, where that is known.
    """

    input_quantizers: ClassVar[tuple[str, ...]] = ("input_quantizer",)
    """Names of the input quantizers, in the order of the inputs."""
    tensors: ClassVar[tuple[str, ...]] = ("input", "output")
    """Names, in ``layer_specific``, of the tensors that the layer has a format for."""
    cost = Cost()
    """Multiplications and output values of the layer in one forward on the example input."""

    input_quantizer: Quantizer
    output_quantizer: Quantizer
    weight_quantizer: Quantizer
    bias_quantizer: Quantizer
    regularization: BitRegularization | None
    name: str
    quantization: Quantization
    counting: Counting
    calls: Calls
    sources: dict[str, Quantizer]

    def __init__(self, *args: Any, pruning: PruningMethod | None = None, quantization: Quantization | None = None, name: str = "", **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._equip(name, pruning or NO_PRUNING, quantization or NO_QUANTIZATION, ())

    @classmethod
    def from_float(cls, layer: nn.Module, name: str, pruning: PruningMethod, quantization: Quantization, calls: Calls = ()) -> Self:
        """Return the compressed layer with all attributes of ``layer``; it shares the parameters with ``layer`` and does not copy them."""
        new = cls.__new__(cls)
        new.__dict__.update({key: value.copy() if isinstance(value, dict) else value for key, value in layer.__dict__.items()})
        new._equip(name, pruning, quantization, calls)
        return new

    def _equip(self, name: str, pruning: PruningMethod, quantization: Quantization, calls: Calls) -> None:
        self.name, self.calls, self.quantization, self.sources = name, calls, quantization, {}
        self.regularization = BitRegularization(quantization) if quantization.regularizes_bits else None
        formats, self.counting = quantization.formats(name), quantization.counting(name)
        for number, place in enumerate(self.input_quantizers):
            setattr(self, place, self._data_quantizer(formats.input, [call.operands[number] for call in calls]))
        self.output_quantizer = self._data_quantizer(formats.output, [call._replace(input=call.output) for call in calls])

    def _data_quantizer(self, settings: TensorFormat, calls: Sequence[Call]) -> Quantizer:
        """Return the quantizer of an input or output with the format ``settings`` and the shapes of ``calls``."""
        try:
            return self.quantization.data_quantizer(settings, [(call.shared, call.channel_axis) for call in calls])
        except ConfigError as error:
            raise ConfigError(f"layer '{self.name}': {error}") from error

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        check_precision({name: fn(torch.empty(0, dtype=one.dtype)).dtype for name, one in self.named_parameters(self.name)})
        return super()._apply(fn, recurse)

    def forward(self, input: Tensor) -> Tensor:
        """Return the quantized output of the layer for ``input``, which is quantized first."""
        return self.output_quantizer(self.compute(self.input_quantizer(input)))

    def tabled(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return ``function(x)`` for quantized ``x``; hardware implements ``function`` as a table."""
        return function(x)

    def compute(self, x: Tensor) -> Tensor:
        """Return the layer's output for a quantized input."""
        raise NotImplementedError

    def output_source(self) -> Quantizer | None:
        """Return the quantizer that produces the output values of the layer, or None where no quantizer does."""
        return None if self.output_quantizer.is_float else self.output_quantizer

    def operand(self, number: int = 0) -> Quantizer:
        """Return the quantizer that defines the bits of an input: the layer's own, or, where that is float, the one in ``sources``."""
        place = self.input_quantizers[number]
        own: Quantizer = getattr(self, place)
        return self.sources.get(place, own) if own.is_float else own

    def connect(self, source: Quantizer, number: int = 0) -> None:
        """Store the quantizer that produces an input, and remove the layer's own input quantizer where it is redundant after it."""
        place = self.input_quantizers[number]
        self.sources[place] = source
        if getattr(self, place).is_redundant_after(source):
            setattr(self, place, NoQuantizer())

    def quantizes(self, name: str) -> bool:
        """Return whether a parameter of the layer is quantized."""
        quantizer = getattr(self, f"{name}_quantizer", None)
        return quantizer is not None and not quantizer.is_float

    def is_quantized(self) -> bool:
        """Return whether all inputs and all parameters of the layer are quantized."""
        parameters = [name for name, parameter in self._parameters.items() if parameter is not None]
        return all(map(self.quantizes, parameters)) and not any(self.operand(number).is_float for number in range(len(self.input_quantizers)))

    def quantizers(self) -> list[Quantizer]:
        """Return the layer's own quantizers."""
        return [child for child in self.children() if isinstance(child, Quantizer)]

    def finalized_parameters(self) -> tuple[Tensor, Tensor | None] | None:
        """Return the (weight, bias) that the layer would have if it were finalized now; None for a layer without a weight."""
        return None

    def linear_map(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the layer's output for a quantized input and the given parameters."""
        raise NotImplementedError

    def operations(self, weight: Tensor, bias: Tensor | None, data: Tensor) -> Tensor:
        """Return the EBOPs of the layer in one inference, a scalar differentiable in the bits: its linear map, applied to bit widths.

        Args:
            weight: bits of each weight, in the shape of the weight.
            bias: bits of each bias, (outputs,), or None. The bits of a bias count once for each position of its output channel.
            data: bits of the input, in a shape that broadcasts with the input of one example.

        Raises:
            ConfigError: the model was compressed without an example input, and the layer is not a dense one.
        """
        first, *others = (self._operations_of(call, weight, bias, data) for call in self.known_calls())
        return sum(others, start=first)

    def _operations_of(self, call: Call, weight: Tensor, bias: Tensor | None, data: Tensor) -> Tensor:
        bits = self.linear_map(data.to(weight).expand(call.input), weight, None).sum()
        if bias is not None:
            bits = bits + bias.sum() * (math.prod(call.output) // max(bias.numel(), 1))
        return self.built(call) * bits if self.counting.limits else bits

    def positions(self, call: Call) -> int:
        """Return how often a call applies the same weights to other data. Hardware may compute these positions one after the other."""
        return 1

    def built(self, call: Call) -> float:
        """Return the fraction of the positions of a call that hardware computes at the same time."""
        return self.counting.built(self.positions(call)) if self.counting.limits else 1.0

    def calls_or_default(self) -> Calls:
        """Return the calls of the layer in one inference; () where they are not known, since the model was compressed without an example input."""
        return self.calls

    def known_calls(self) -> Calls:
        """Return the calls of the layer in one inference.

        Raises:
            ConfigError: they are not known.
        """
        calls = self.calls_or_default()
        if not calls:
            raise ConfigError(f"the EBOPs of layer '{self.name}' depend on the size of its input: give compress an example_input")
        return calls

    def counted(self) -> tuple[Quantizer, ...]:
        """Return the quantizers whose bits :meth:`trained_ebops` counts; none for a layer that the EBOPs regularization does not include."""
        return ()

    def counted_bits(self, widths: Widths) -> list[Tensor]:
        """Return the bits of the quantizers of :meth:`counted`, in one dtype and on one device; ``widths`` returns the bits of a quantizer."""
        bits = [widths(quantizer) for quantizer in self.counted()]
        known = next((one for one, quantizer in zip(bits, self.counted(), strict=True) if not quantizer.is_float), bits[0])
        return [one.to(known) for one in bits]

    def regularizes_ebops(self) -> bool:
        """Return whether the loss has an EBOPs regularization and at least one bit width that the EBOPs of this layer depend on is trained."""
        return self.quantization.regularizes_ebops and any(isinstance(quantizer, HGQQuantizer) for quantizer in self.counted())

    def trained_ebops(self, widths: Widths) -> Tensor:
        """Return the EBOPs by bit width times ``ebops_factor``, differentiable in trained bits; ``widths`` returns the bits of a quantizer."""
        factor = self.counting.ebops_factor
        return self.bit_operations(widths) if factor == 1 else factor * self.bit_operations(widths)

    def bit_operations(self, widths: Widths) -> Tensor:
        """Return the EBOPs by bit width, without ``ebops_factor``."""
        return self.data_operations(widths)

    def data_operations(self, widths: Widths) -> Tensor:
        """Return the EBOPs of products of data with data or with table values; ``widths`` returns the bits of a quantizer."""
        return torch.zeros(())

    @torch.no_grad()
    def ebops(self, parameters: tuple[Tensor, Tensor | None] | None = None) -> float:
        """Return the exact EBOPs that the layer would have if it were finalized now, times ``ebops_factor``.

        A constant counts the bits from its highest to its lowest set bit. ``parameters`` is the result of :meth:`finalized_parameters`, where the
        caller has it already.
        """
        parameters = self.finalized_parameters() if parameters is None else parameters
        factor, of_data = self.counting.ebops_factor, float(self.data_operations(lambda quantizer: quantizer.width()))
        if parameters is None:
            return factor * of_data
        weight, bias = parameters
        weight_bits = constant_bits(weight, self.weight_quantizer)
        bias_bits = None if bias is None else constant_bits(bias, self.bias_quantizer)
        return factor * (of_data + float(self.operations(weight_bits, bias_bits, self.operand().width())))

    def on_stage_start(self, stage: Stage) -> None:
        """Tell the regularization of bits that ``stage`` begins."""
        if self.regularization is not None:
            self.regularization.on_stage_start(stage)

    def on_epoch_end(self) -> None:
        """Tell the regularization of bits that an epoch ended."""
        if self.regularization is not None:
            self.regularization.on_epoch_end()

    def finalized(self) -> nn.Module:
        """Turn this layer into its finalized form, with masks and quantization applied to the weights and nothing left to train, and return it."""
        self.regularization = None
        for place, quantizer in self.named_children():
            if isinstance(quantizer, Quantizer) and place not in PARAMETERS:
                setattr(self, place, quantizer.finalized())
        return self


class CompressedLayer(QuantizedLayer):
    """A layer whose weight is pruned and quantized; a subclass defines ``linear_map``.

    ``prunable`` says whether the layer takes part in pruning. ``finalize`` does not change it.
    """

    tensors = ("weight", "bias", "input", "output")

    weight: Tensor
    bias: Any
    pruner: Pruner
    pruning_first: bool
    prunable: bool

    def _equip(self, name: str, pruning: PruningMethod, quantization: Quantization, calls: Calls) -> None:
        super()._equip(name, pruning, quantization, calls)
        formats = quantization.formats(name)
        self.pruning_first = quantization.pruning_first
        self.weight_quantizer = quantization.weight_quantizer(formats.weight, self.arranged(self.weight).shape)
        self.bias_quantizer = NoQuantizer() if self.bias is None else quantization.weight_quantizer(formats.bias, self.bias.shape)
        if pruning.prunes(name) and pruning.rescales and not self.pruning_first and formats.weight.enable:
            raise ConfigError(
                f"layer '{name}': Quantization.pruning_first must be true with {type(pruning).__name__}, which rescales the weights it keeps"
            )
        self.set_pruner(pruning)

    def set_pruner(self, pruning: PruningMethod) -> None:
        """Give the layer a new pruner of ``pruning``, or none if the method does not prune the layer.

        Raises:
            ConfigError: settings of the method that the layer cannot take.
        """
        self.prunable = pruning.prunes(self.name)
        try:
            self.pruner = pruning.pruner(self.arranged(self.weight), type(self)) if self.prunable else NoPruner()
        except ConfigError as error:
            raise ConfigError(f"layer '{self.name}': {error}") from error
        self.pruner.layer = self.name

    def share(self, other: "CompressedLayer") -> None:
        """Use the pruner and weight quantizer of ``other``, a layer with the same weight parameter."""
        self.pruner, self.weight_quantizer, self.prunable = other.pruner, other.weight_quantizer, other.prunable

    def arranged(self, weight: Tensor) -> Tensor:
        """Return ``weight`` with the output channels first, the order that pruners, quantizers and ``linear_map`` take."""
        return weight

    def stored(self, weight: Tensor) -> Tensor:
        """Return an arranged weight in the axis order of the parameter."""
        return weight

    def seen(self) -> Tensor:
        """Return the input of the pruner: the arranged weight, quantized where quantization comes before pruning."""
        weight = self.arranged(self.weight)
        return weight if self.pruning_first else self.weight_quantizer(weight)

    def effective(self) -> tuple[Tensor, Tensor | None]:
        """Return the pruned and quantized (weight, bias), the weight arranged."""
        seen = self.seen()
        weight = self.weight_quantizer(self.pruner(seen)) if self.pruning_first else self.pruner(seen)
        return weight, None if self.bias is None else self.pruner.prune_bias(self.bias_quantizer(self.bias), seen)

    @torch.no_grad()
    def finalized_parameters(self) -> tuple[Tensor, Tensor | None]:
        """Return the (weight, bias) of evaluation mode, whatever the current mode is; the weight arranged, both without gradient."""
        with evaluating(self):
            weight, bias = self.effective()
        return weight.detach(), None if bias is None else bias.detach()

    def compute(self, x: Tensor) -> Tensor:
        """Return the layer's output for a quantized input, and let the pruner observe the activations that it needs."""
        y = self.linear_map(x, *self.effective())
        self.show(x, y)
        return y

    def show(self, x: Tensor, y: Tensor) -> None:
        """Pass the quantized input and the unquantized output to the pruner, as far as it needs them, in training steps of the train stage."""
        if self.training and self.pruner.needs and self.pruner.stage is Stage.TRAIN:
            for needed, values in (("input", x), ("output", y)):
                if needed in self.pruner.needs:
                    self.pruner.observe(values.detach())

    def counted(self) -> tuple[Quantizer, ...]:
        """Return the quantizers of weight, bias and input."""
        return self.weight_quantizer, self.bias_quantizer, self.operand()

    def positions(self, call: Call) -> int:
        """Return how many positions the output has; each position holds one value per output channel."""
        return math.prod(call.output) // max(self.arranged(self.weight).shape[0], 1)

    def bit_operations(self, widths: Widths) -> Tensor:
        """Return the EBOPs by bit width, differentiable in trained bits. Pruned weights cost nothing. ``widths`` returns the bits of a quantizer."""
        weight, bias, data = map(widths, self.counted())
        weight = weight.to(self.weight).expand(self.arranged(self.weight).shape)
        if not isinstance(self.pruner, NoPruner):
            weight = weight * self.pruner.hard_mask(self.seen()).detach()
        return self.operations(weight, None if self.bias is None else bias.to(self.bias).expand_as(self.bias), data)

    @torch.no_grad()
    def start_pruner(self, stage: Stage, horizon: Horizon | None) -> None:
        """Start a stage of the pruner. At the start of fine-tuning, freeze its mask and write the weight that it folds into the parameter."""
        if stage is Stage.FINETUNE:
            folded = self.pruner.freeze(self.seen())
            if self.pruning_first or self.weight_quantizer.is_float:
                self.weight.copy_(self.stored(folded))
        else:
            self.pruner.on_stage_start(stage, horizon)

    @torch.no_grad()
    def finalized(self) -> nn.Module:
        """Replace the parameters by new ones with mask and quantization applied. The old ones, which other modules may use, are not changed."""
        super().finalized()
        weight, bias = self.finalized_parameters()
        self.weight = nn.Parameter(self.stored(weight).clone(), requires_grad=False)
        if bias is not None:
            self.bias = nn.Parameter(bias.clone(), requires_grad=False)
        self.pruner = NoPruner()
        self.weight_quantizer, self.bias_quantizer = self.weight_quantizer.folded(), self.bias_quantizer.folded()
        return self
