"""The weights of each layer, as trained and as finalized, as histograms."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pquant.layers.queries import weight_layers
from pquant.reporting.plots import Plot, drawing

BINS = 49
WIDTH, HEIGHT, LABELS = 220, 80, 16


class Weights(NamedTuple):
    """Counts of the weights of a layer in ``BINS`` equal bins from -limit to limit, as trained and as finalized."""

    name: str
    limit: float
    trained: list[int]
    finalized: list[int]


@torch.no_grad()
def weight_histograms(model: nn.Module) -> list[Weights]:
    """Return the histograms of a compressed model that is not yet finalized, one per weight layer."""
    return [_histogram(name, layer.weight, layer.finalized_parameters()[0]) for name, layer in weight_layers(model).items() if layer.weight.numel()]


def histogram_plots(layers: list[Weights]) -> list[Plot]:
    """Return one plot per layer: bars for the weights as finalized, a line for those as trained; logarithmic counts."""
    return [Plot(layer.name, _plot(layer)) for layer in layers]


def _histogram(name: str, trained: Tensor, finalized: Tensor) -> Weights:
    both = torch.stack([trained.flatten(), finalized.flatten()]).float().cpu()
    limit = float(both[both.isfinite()].abs().max()) or 1.0
    counts = [torch.histc(values[values.isfinite()], BINS, -limit, limit).int().tolist() for values in both]
    return Weights(name, limit, *counts)


def _plot(layer: Weights) -> str:
    bar, highest = WIDTH / BINS, max(map(_height, layer.trained + layer.finalized), default=0) or 1
    top = [[HEIGHT * (1 - _height(count) / highest) for count in counts] for counts in (layer.trained, layer.finalized)]
    line = " ".join(f"{bar * index:.1f},{y:.1f} {bar * (index + 1):.1f},{y:.1f}" for index, y in enumerate(top[0]))
    bars = "".join(f"M{bar * index:.1f} {HEIGHT}V{y:.1f}h{bar:.1f}V{HEIGHT}" for index, y in enumerate(top[1]) if y < HEIGHT)
    ends = ((0, "start", -layer.limit), (WIDTH / 2, "middle", 0), (WIDTH, "end", layer.limit))
    labels = "".join(f'<text x="{x:g}" y="{HEIGHT + 13}" text-anchor="{anchor}">{value:.3g}</text>' for x, anchor, value in ends)
    axis = f'<path d="M0 {HEIGHT}H{WIDTH}" style="stroke: var(--line)"/>'
    trained = f'<polyline points="{line}" style="fill: none; stroke: var(--second); stroke-width: 1.2"/>'
    return drawing(WIDTH, HEIGHT + LABELS, f'<path d="{bars}" style="fill: var(--accent)"/>{axis}{trained}{labels}')


def _height(count: int) -> float:
    return math.log1p(count)
