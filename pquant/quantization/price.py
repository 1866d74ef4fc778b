"""What training pays for bits: beta times the EBOPs plus gamma times all bit widths, of all layers in one pass."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pquant.flat import addresses, apart, is_plain, laid
from pquant.layers.base import CompressedLayer, QuantizedLayer
from pquant.pruning.group import Groups
from pquant.pruning.method import NoPruner
from pquant.quantization.ebops import calls_of, operations
from pquant.quantization.hgq import HGQQuantizer, price_of
from pquant.quantization.kernels import loops
from pquant.quantization.quantizer import FLOAT_BITS, Quantizer
from pquant.watched import Unchanged


class _InALoop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, price: "Price", *pairs: Tensor) -> Tensor:
        ctx.laid, (value, ctx.slope) = price.laid, price.in_a_loop(pairs)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        parts = ctx.laid.apart(ctx.slope * grads[0])
        return None, *parts, *parts


class _Meeting:
    """Which of the ``count`` bit widths of its data each weight of a layer meets, by its place ``element`` among them."""

    def __init__(self, element: Tensor, count: int, device: torch.device) -> None:
        self.element, self.count = element.to(device), count
        alike = len(set(element.bincount(minlength=count).tolist())) == 1
        self.order = element.argsort(stable=True).to(device) if alike else None

    def sums(self, values: Tensor) -> Tensor:
        """Return the sums of weights' values by the bit width that they meet, (count,).

        Where all are met alike each is a sum of its own: threads that add to a few places, as in ``index_add_``, wait for each other.
        """
        if self.count == 1:
            return values.sum().view(1)
        if self.order is None:
            return values.new_zeros(self.count).index_add_(0, self.element, values)
        return values.index_select(0, self.order).view(self.count, -1).sum(1)


class Price:
    """The price of the trained bits of layers under one quantization; calling it gives a scalar, differentiable in the bits.

    EBOPs count bit widths here, not set bits; pruned weights are free, the mask taken as constant. Where each weight meets data of one bit width,
    ``count`` times in an inference, they are the sum over all weights of weight bits * data bits * count; a bias is a weight of data with one
    bit. Layers whose weights meet several (convolutions over data with a bit width a value) are counted one by one.
    """

    def __init__(self, layers: Sequence[QuantizedLayer]) -> None:
        self.layers = layers
        weighted = [layer for layer in layers if isinstance(layer, CompressedLayer)]
        met = {layer: _met(layer) for layer in weighted}
        self.singly = [layer for layer in weighted if met[layer] is None]
        self.flat = [layer for layer in weighted if met[layer] is not None]
        self.biased = [layer for layer in self.flat if layer.bias is not None]
        self.pruned = any(not isinstance(layer.pruner, NoPruner) for layer in self.flat)
        self.pruners = Groups(self.flat)

        parameters = [layer.weight_quantizer for layer in self.flat] + [layer.bias_quantizer for layer in self.biased]
        own = _trained([*parameters, *(child for layer in layers for child in layer.children())])
        self.trained = _trained([*own, *(layer.operand() for layer in weighted)])
        self.paid = sum(quantizer.f.numel() for quantizer in own)

        sizes = [quantizer.f.numel() for quantizer in self.trained]
        ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
        self.starts = dict(zip(map(id, self.trained), ends, strict=False))
        self.one, self.float = ends[-1], ends[-1] + 1
        device = layers[0].price.device
        self.constants = torch.tensor([1.0, FLOAT_BITS], device=device)
        self.signs = torch.cat([torch.full((size,), float(quantizer.sign)) for quantizer, size in zip(self.trained, sizes, strict=True)]).to(device)

        self.plan: Unchanged | None = None
        self.weight_at = self.data_at = torch.empty(0, dtype=torch.int64)
        self.count = torch.empty(0)
        columns = [self._of_weight(layer, *met[layer]) for layer in self.flat] + [self._of_bias(layer) for layer in self.biased]  # type: ignore[misc]
        if columns:
            weight_at, data_at, count = (torch.cat(column) for column in zip(*columns, strict=True))
            self.in_order = torch.equal(weight_at, torch.arange(len(weight_at)))
            self.weight_at, self.data_at, self.count = (column.to(device) for column in (weight_at, data_at, count))
        self.priced = [(layer.weight.shape, layer.weight_quantizer) for layer in self.flat]
        self.priced += [(layer.bias.shape, layer.bias_quantizer) for layer in self.biased]
        self.meetings = [_Meeting(met[layer][0].flatten(), layer.operand().bits().numel(), device) for layer in self.flat]  # type: ignore[index]

    def _of_weight(self, layer: CompressedLayer, element: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return, for each weight, the places of its bits and of its data's in the table, and the number of its multiplications."""
        data = self._places(layer.operand()).flatten()[element]
        return self._places(layer.weight_quantizer).expand_as(layer.weight).flatten(), data.flatten(), count.flatten()

    def _of_bias(self, layer: CompressedLayer) -> tuple[Tensor, Tensor, Tensor]:
        places = self._places(layer.bias_quantizer).expand_as(layer.bias)
        uses = sum(math.prod(outputs) // len(layer.weight) for _, outputs in calls_of(layer, layer.weight))
        return places, torch.full_like(places, self.one), torch.full(places.shape, float(uses))

    def __call__(self) -> Tensor:
        """Return beta * EBOPs + gamma * (sum of all bit widths)."""
        if torch.compiler.is_compiling():
            total = price_of(self.trained, self.signs, self._sloped)
        else:
            if self.plan is None or not self.plan.still():
                self._plan()
            total = _InALoop.apply(self, *self.pairs) if self.looped else price_of(self.trained, self.signs, self._sloped)
        for layer in self.singly:
            total = total + layer.price[0] * _counted(layer)
        return total

    def _plan(self) -> None:
        self.plan = Unchanged([*self.layers, *self.trained])
        self.rates = self.layers[0].price
        self.pairs = [*(quantizer.i for quantizer in self.trained), *(quantizer.f for quantizer in self.trained)]
        self.looped = all(map(is_plain, (*self.pairs, self.rates, self.count, *(layer.weight for layer in self.flat))))
        if not self.looped:
            return
        shapes = tuple(quantizer.f.shape for quantizer in self.trained)
        self.laid, self.sizes = laid(shapes, shapes), np.array([shape.numel() for shape in shapes])
        self.places = (self.weight_at.numpy(), self.data_at.numpy())
        self.counts, self.sign_of_each = self.count.numpy(), np.array([quantizer.sign for quantizer in self.trained], np.float32)

    def in_a_loop(self, pairs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return what :meth:`_sloped` does, the slope already 0 where there are no bits, from all i and all f."""
        value, slope, half = torch.empty(()), torch.empty(self.one), len(pairs) // 2
        masks = self._masks() if self.pruned else slope[:0]
        bits = np.array(addresses(*pairs[:half])), np.array(addresses(*pairs[half:])), self.sizes
        kept, results = (masks.data_ptr(), masks.numel()), addresses(value, slope)
        loops().price(bits, self.sign_of_each, self.places, self.counts, kept, self.rates.data_ptr(), self.paid, results)
        return value, slope

    def _masks(self) -> Tensor:
        """Return which weights have a price, 1 or 0, end to end."""
        return self.pruners.masks().to(self.count)

    def _sloped(self, bits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the price of bit widths, but for the layers counted one by one, and its slope by width."""
        beta, gamma = self.layers[0].price.unbind()
        total, slope = bits.new_zeros(()), torch.zeros_like(bits)
        if self.flat:
            table, cost = torch.cat((bits, self.constants)), self.count * beta
            if self.pruned:
                masks = self._masks()
                cost[: len(masks)] *= masks
            weight_bits = bits[: len(self.weight_at)] if self.in_order else table.index_select(0, self.weight_at)
            weight_slope = cost * table.index_select(0, self.data_at)
            total, slope = torch.dot(weight_bits, weight_slope), self._by_width(weight_slope, cost * weight_bits)
        if self.layers[0].quantization.hgq_gamma:
            total = total + gamma * bits[: self.paid].sum()
            slope[: self.paid] += gamma
        return total, slope

    def _by_width(self, weight_slope: Tensor, data_slope: Tensor) -> Tensor:
        """Return the slopes of all constants, which are end to end, and of the data that each meets, added up by bit width."""
        shapes = tuple(shape for shape, _ in self.priced)
        sums: dict[Quantizer, Tensor] = {}
        for part, (_, quantizer) in zip(apart(weight_slope, shapes), self.priced, strict=True):
            if isinstance(quantizer, HGQQuantizer):
                sums[quantizer] = sums.get(quantizer, 0) + part.sum_to_size(quantizer.f.shape)
        for part, layer, meeting in zip(apart(data_slope, shapes), self.flat, self.meetings, strict=False):
            operand = layer.operand()
            if isinstance(operand, HGQQuantizer):
                sums[operand] = sums.get(operand, 0) + meeting.sums(part.flatten()).view(operand.f.shape)
        return torch.cat([sums[one].flatten() if one in sums else one.f.new_zeros(one.f.numel()) for one in self.trained])

    def _places(self, quantizer: Quantizer) -> Tensor:
        """Return where the bit widths of a quantizer lie in the table, in their shape."""
        if not isinstance(quantizer, HGQQuantizer):
            return torch.tensor(self.float)
        return self.starts[id(quantizer)] + torch.arange(quantizer.f.numel()).view(quantizer.f.shape)


def prices(model: nn.Module) -> list[Price]:
    """Return the price of all trained bits of a model, one for each quantization that has one (``hgq_beta``, ``hgq_gamma``)."""
    groups: dict[int, list[QuantizedLayer]] = {}
    for layer in model.modules():
        if isinstance(layer, QuantizedLayer) and layer.quantization.prices_bits and _trained(layer.children()):
            groups.setdefault(id(layer.quantization), []).append(layer)
    return [Price(layers) for layers in groups.values()]


def _trained(modules: Iterable[nn.Module]) -> list[HGQQuantizer]:
    """Return the quantizers with trained bits, each once."""
    return list({id(module): module for module in modules if isinstance(module, HGQQuantizer)}.values())


@torch.enable_grad()
def _met(layer: CompressedLayer) -> tuple[Tensor, Tensor] | None:
    """Return, for each weight, which of the operand's bit widths it meets, by its place among them, and how often; None where it meets several."""
    shape = layer.operand().bits().shape
    places = torch.arange(shape.numel(), dtype=torch.float64).view(shape)
    sums = [torch.zeros(layer.weight.shape, dtype=torch.float64) for _ in range(3)]
    for inputs, _ in calls_of(layer, layer.weight):
        weight = torch.zeros(layer.weight.shape, dtype=torch.float64, requires_grad=True)
        for power, total in enumerate(sums):
            total += torch.autograd.grad(layer.linear_map(places.pow(power).expand(1, *inputs), weight, None).sum(), weight)[0]
    count, first, second = sums
    if not torch.equal(first.square(), second * count):
        return None
    return (first / count.clamp(min=1)).long(), count.to(layer.weight.dtype)


def _mask(layer: CompressedLayer) -> Tensor:
    return layer.pruner.priced_mask(layer.weight).detach().expand_as(layer.weight)


def _counted(layer: CompressedLayer) -> Tensor:
    """Return the EBOPs of one layer by bit width."""
    weight = layer.weight_quantizer.bits().to(layer.weight) * _mask(layer)
    bias = None if layer.bias is None else layer.bias_quantizer.bits().expand_as(layer.bias)
    return operations(layer, weight, bias, layer.operand().bits())
