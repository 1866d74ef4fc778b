"""The compression space: a state is a pruned fraction and a bit width for each layer; distances are square roots of FIT."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import compress, repeat
from operator import ne

import torch
from torch import Tensor

from pquant.fitcompress.search import State
from pquant.pruning.masks import global_budget, keep_largest
from pquant.pruning.method import NoPruner
from pquant.quantization.fixed_point import OverflowMode, RoundMode, fixed_point
from pquant.quantization.quantizer import FLOAT_BITS, Quantizer

Tensors = dict[str, Tensor]
MOST_FRACTIONAL_BITS = 32
SMALLER_RANGES = 3
"""Formats are tried down to this many integer bits below those that hold every weight, as saturating few weights may cost less than a coarse step."""


@dataclass(frozen=True)
class Format:
    """The fixed-point format of all weights of a layer."""

    k: int
    i: int
    f: int


@dataclass(frozen=True)
class SearchedLayer:
    """A layer in the search.

    Args:
        weight: the dense weight.
        widths: bits of a weight at each level, 32 for float values; the search starts at the first. A single width is not searched.
        quantizer: quantizer of the weight if the widths are not searched.
        keep_negatives: k of the searched formats.
        prunable: whether the layer takes part in pruning.
    """

    weight: Tensor
    widths: tuple[float, ...]
    quantizer: Quantizer
    keep_negatives: int
    round_mode: RoundMode
    overflow_mode: OverflowMode
    prunable: bool

    def rounded(self, weight: Tensor, format: Format | None) -> Tensor:
        """Return ``weight`` quantized to a format; with None, quantized by its own quantizer."""
        if format is None:
            return self.quantizer(weight)
        return fixed_point(weight, format.k, format.i, format.f, self.round_mode, self.overflow_mode)


def global_masks(scores: Mapping[str, Tensor], share: float) -> Tensors:
    """Return a mask for each layer; together they drop the fraction ``share`` of all weights with the lowest scores. Scores are at least 0."""
    counts = global_budget({name: (NoPruner(), score) for name, score in scores.items()}, share)
    return {name: keep_largest(score, counts[name]) for name, score in scores.items()}


def best_format(layer: SearchedLayer, weight: Tensor, importance: Tensor, bits: int) -> tuple[Format, Tensor]:
    """Return the format of ``bits`` bits with the least sum of importance times squared error on ``weight``, and the quantized weight.

    It tries the fewest integer bits that hold every weight, and down to SMALLER_RANGES fewer. Ties go to the smaller unweighted squared error.
    """
    lowest = bits - layer.keep_negatives - MOST_FRACTIONAL_BITS
    top = max(int(torch.frexp(weight.abs().max()).exponent), lowest)
    formats = [Format(layer.keep_negatives, i, bits - layer.keep_negatives - i) for i in range(top, max(top - SMALLER_RANGES, lowest) - 1, -1)]
    rounded = [layer.rounded(weight, format) for format in formats]
    squares = [(values - weight).square() for values in rounded]
    errors = [(float((importance * each).sum()), float(each.sum())) for each in squares]
    best = errors.index(min(errors))
    return formats[best], rounded[best]


class CompressionSpace:
    """The states of a network: (index of the pruned fraction, index of the width of each layer...).

    A step lowers the width of one layer to the next, or goes to the next pruned fraction: the prunable weights with the smallest F w^2 are pruned,
    with F of the dense network. The pruned dense weights are then quantized. In prunable layers, weights that round to 0 count as pruned.

    The length of a step is sqrt(sum F (change)^2) with the Fisher information F of the state before the step. F is estimated at the pruned weights
    before rounding (``approximate``), or at the pruned and rounded weights. The distance to nothing always uses the weights before rounding.

    Args:
        layers: all layers whose weights count in the size, by name.
        shares: pruned fractions in order; the first is 0.
        fisher: returns the Fisher diagonal by layer for given weights.
        approximate: estimate F once for each pruned fraction.
    """

    def __init__(
        self, layers: Mapping[str, SearchedLayer], shares: tuple[float, ...], fisher: Callable[[Tensors], Tensors], approximate: bool = True
    ) -> None:
        self.layers, self.shares, self.approximate = dict(layers), shares, approximate
        self.names = list(self.layers)
        self.total = sum(layer.weight.numel() for layer in self.layers.values())
        self._estimate = fisher
        self.fisher_of_share = cache(self._fisher_of_share)
        self.fisher_of_state = lru_cache(maxsize=8)(self._fisher_of_state)
        self.masks_of_share = lru_cache(maxsize=4)(self._masks_of_share)
        self.quantized = lru_cache(maxsize=16 * len(self.names))(self._quantized)
        self.kept, self._bits = cache(self._kept), cache(self._bits_left)
        self._step, self._norm = cache(self._squared_step), cache(self._squared_norm)

    @property
    def start(self) -> State:
        """The state with nothing pruned and the first width in each layer."""
        return (0,) * (1 + len(self.names))

    def neighbours(self, state: State) -> Iterator[State]:
        """Yield the state with the next pruned fraction, then the states with the next width of one layer."""
        last = [len(self.shares) - 1, *(len(layer.widths) - 1 for layer in self.layers.values())]
        for place, end in enumerate(last):
            if state[place] < end:
                yield (*state[:place], state[place] + 1, *state[place + 1 :])

    def compression(self, state: State) -> float:
        """Return the bits of all remaining weights, divided by the bits of the dense float32 weights."""
        return sum(map(self._bits, self.names, repeat(state[0]), state[1:])) / (FLOAT_BITS * self.total)

    def distance(self, state: State, neighbour: State) -> float:
        """Return the square root of FIT between two states, with the Fisher information of the first."""
        places = range(len(self.names))
        changed = places if state[0] != neighbour[0] else compress(places, map(ne, state[1:], neighbour[1:]))
        if self.approximate:
            steps = ((self.names[place], state[0], state[1 + place], neighbour[0], neighbour[1 + place]) for place in changed)
            return math.sqrt(sum(self._step(*step) for step in steps))
        information, (before, after) = self.fisher_of_state(state), (self.weights(state), self.weights(neighbour))
        return math.sqrt(sum(fit(information[name], before[name], after[name]) for name in map(self.names.__getitem__, changed)))

    def to_nothing(self, state: State) -> float:
        """Return the square root of FIT between a state and all weights 0."""
        return math.sqrt(sum(map(self._norm, self.names, repeat(state[0]), state[1:])))

    def weights(self, state: State) -> Tensors:
        """Return the pruned and quantized weights of a state, by layer."""
        return {name: self.quantized(name, state[0], level)[1] for name, level in zip(self.names, state[1:], strict=True)}

    def formats(self, state: State) -> dict[str, Format | None]:
        """Return the formats of the layers in a state; None for layers that keep their own format."""
        return {name: self.quantized(name, state[0], level)[0] for name, level in zip(self.names, state[1:], strict=True)}

    def predicted_loss(self, state: State) -> dict[str, float]:
        """Return the predicted rise of the loss by layer: 1/2 sum F (change since the start)^2, with F of the dense network."""
        information, dense, now = self.fisher_of_share(0), self.weights(self.start), self.weights(state)
        return {name: fit(information[name], dense[name], now[name]) / 2 for name in self.names}

    def _masks_of_share(self, share: int) -> Tensors:
        information = self.fisher_of_share(0) if self.shares[share] else {}
        prunable = {name: layer.weight for name, layer in self.layers.items() if layer.prunable and self.shares[share]}
        return global_masks({name: information[name] * weight.square() for name, weight in prunable.items()}, self.shares[share])

    def _pruned(self, share: int) -> Tensors:
        masks = self.masks_of_share(share)
        return {name: layer.weight * masks[name] if name in masks else layer.weight for name, layer in self.layers.items()}

    def _fisher_of_share(self, share: int) -> Tensors:
        return self._estimate(self._pruned(share) if share else {name: layer.weight for name, layer in self.layers.items()})

    def _fisher_of_state(self, state: State) -> Tensors:
        return self._estimate(self.weights(state))

    def _quantized(self, name: str, share: int, level: int) -> tuple[Format | None, Tensor]:
        layer, mask = self.layers[name], self.masks_of_share(share).get(name)
        weight = layer.weight if mask is None else layer.weight * mask
        if len(layer.widths) == 1:
            return None, layer.rounded(weight, None)
        if level == 0:
            return None, weight
        return best_format(layer, weight, self.fisher_of_share(0)[name], int(layer.widths[level]))

    def _kept(self, name: str, share: int, level: int) -> int:
        values = self.quantized(name, share, level)[1]
        return int(values.count_nonzero()) if self.layers[name].prunable else values.numel()

    def _bits_left(self, name: str, share: int, level: int) -> float:
        return self.kept(name, share, level) * self.layers[name].widths[level]

    def _squared_step(self, name: str, share: int, level: int, next_share: int, next_level: int) -> float:
        before, after = self.quantized(name, share, level)[1], self.quantized(name, next_share, next_level)[1]
        return fit(self.fisher_of_share(share)[name], before, after)

    def _squared_norm(self, name: str, share: int, level: int) -> float:
        values = self.quantized(name, share, level)[1]
        return fit(self.fisher_of_share(share)[name], values, torch.zeros_like(values))


def fit(information: Tensor, a: Tensor, b: Tensor) -> float:
    """Return FIT of one weight: sum F (a - b)^2, with the Fisher diagonal F."""
    return float((information * (a - b).square()).sum())
