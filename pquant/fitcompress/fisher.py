"""The empirical Fisher information of weights and activations, from the gradient of each example.

FIT: A Metric for Model Sensitivity, ICLR 2023, arXiv 2210.08502: the diagonal F of E[grad grad^T] approximates the diagonal of the Hessian, so that a
change d of the weights raises the loss by about 1/2 sum F d^2. The mean is over single examples: the squared mean gradient of a batch would
underestimate it.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap

from pquant.layers.base import CompressedLayer
from pquant.layers.queries import weight_layers
from pquant.settings import Settings, setting

Loss = Callable[..., Tensor]
Call = tuple[CompressedLayer, Tensor, Tensor]


@dataclass(frozen=True)
class StoppingRule(Settings):
    """The rule that decides how many examples are used to estimate the Fisher information.

    Args:
        tolerance: the estimate ends when the standard error of the whole trace, divided by the trace, is below this value. The error is computed from
            the spread between batches.
        min_iterations: minimum number of batches.
        max_iterations: maximum number of batches.
        batch_size: number of examples in a batch.
    """

    tolerance: float = setting(0.1, ge=0)
    min_iterations: int = setting(8, ge=2)
    max_iterations: int = setting(32, ge=2)
    batch_size: int = setting(32, ge=1, le=2**31 - 1)

    def __post_init__(self) -> None:
        """Check the fields and their order."""
        super().__post_init__()
        if self.max_iterations < self.min_iterations:
            raise self.error("max_iterations", f"at least min_iterations = {self.min_iterations}")


@dataclass(frozen=True)
class Fisher:
    """Fisher information by layer name.

    ``weights`` holds the diagonal in the shape of each weight; ``inputs`` the trace for the quantized input of the layer, summed over its calls;
    ``traces`` the trace over all weights of the network, for each batch.
    """

    weights: dict[str, Tensor]
    inputs: dict[str, float]
    traces: tuple[float, ...]

    @property
    def iterations(self) -> int:
        """The number of batches used."""
        return len(self.traces)

    @property
    def error(self) -> float:
        """Relative standard error of the trace; infinite for less than two batches."""
        return relative_error(self.traces)


def relative_error(values: tuple[float, ...] | list[float]) -> float:
    """Return the standard error of the mean of ``values``, divided by the mean; 0 if all are 0, infinite for less than two values."""
    if len(values) < 2:
        return math.inf
    each = torch.tensor(values, dtype=torch.float64)
    return float(each.std() / each.numel() ** 0.5 / each.mean()) if each.any() else 0.0


def fisher(model: nn.Module, batches: Iterable[tuple[Tensor, ...]], loss: Loss, rule: StoppingRule | None = None) -> Fisher:
    """Return the empirical Fisher information of all weight layers of a compressed ``model``, which is put in evaluation mode.

    Args:
        model: a model that :func:`pquant.compress` returned, on the device of the batches.
        batches: (input, target) tensors with the batch axis first, or (input, target, weight). With weights the information is a weighted mean: the
            gradient of each example is multiplied by the root of its weight.
        loss: mean loss of a batch, a scalar, from (output, target), and weights (batch,) if there are any.
        rule: when to stop; None: use all batches.
    """
    model.eval()
    total: dict[str, Tensor] = {name: torch.zeros_like(layer.arranged(layer.weight)) for name, layer in weight_layers(model).items()}
    inputs: dict[str, float] = dict.fromkeys(total, 0.0)
    traces: list[float] = []
    examples = 0
    with _recording(model) as calls:
        for x, target, *weight in batches:
            calls.clear()
            x = x.detach().requires_grad_(x.is_floating_point())
            total_loss = loss(model(x), target, *(one.sqrt() for one in weight)) * len(x)
            gradients = _gradients(total_loss, [tensor for each in calls.values() for _, *pair in each for tensor in pair])
            batch_trace = 0.0
            for name, each in calls.items():
                squares = _squared_gradients(each, gradients)
                total[name] += squares
                batch_trace += float(squares.sum())
                inputs[name] += sum(float(gradients[id(seen)].square().sum()) for _, seen, _ in each if id(seen) in gradients)
            examples += len(x)
            traces.append(batch_trace / len(x))
            if rule and len(traces) >= rule.min_iterations and (relative_error(traces) < rule.tolerance or len(traces) == rule.max_iterations):
                break
    mean = {name: squares / max(examples, 1) for name, squares in total.items()}
    return Fisher(mean, {name: trace / max(examples, 1) for name, trace in inputs.items()}, tuple(traces))


def _gradients(total: Tensor, tensors: list[Tensor]) -> dict[int, Tensor]:
    """Return the gradients of ``total`` by the id of each tensor that it depends on."""
    needed = [tensor for tensor in tensors if tensor.requires_grad]
    found = zip(needed, torch.autograd.grad(total, needed, allow_unused=True), strict=True)
    return {id(tensor): gradient for tensor, gradient in found if gradient is not None}


@torch.no_grad()
def _squared_gradients(calls: list[Call], gradients: dict[int, Tensor]) -> Tensor:
    """Return the sum over examples of the squared gradient of a weight that these calls use, in the shape of the weight."""
    used = [(layer, x, gradients[id(y)]) for layer, x, y in calls if id(y) in gradients]
    each = [vmap(partial(_gradient, layer, layer.arranged(layer.weight).detach()))(x.detach(), upstream) for layer, x, upstream in used]
    return torch.stack(each).sum(0).square_().sum(0) if each else torch.zeros_like(calls[0][0].arranged(calls[0][0].weight))


def _gradient(layer: CompressedLayer, weight: Tensor, x: Tensor, upstream: Tensor) -> Tensor:
    """Return the gradient of one example's loss with respect to the weight, from the gradient ``upstream`` with respect to the layer's output."""
    pull = vjp(lambda values: type(layer).linear_map(layer, x.unsqueeze(0), values, None), weight)[1]
    return pull(upstream.unsqueeze(0))[0]


@contextmanager
def _recording(model: nn.Module) -> Iterator[dict[str, list[Call]]]:
    """Record (layer, input, output) of each call, by the name of the layer that owns the weight."""
    calls: dict[str, list[Call]] = {}
    owners = {id(layer.weight): name for name, layer in weight_layers(model).items()}
    layers = [module for module in model.modules() if isinstance(module, CompressedLayer)]

    def record(layer: CompressedLayer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = x.view_as(x)
        y = type(layer).linear_map(layer, x, weight, bias)
        calls.setdefault(owners[id(layer.weight)], []).append((layer, x, y))
        return y.clone()

    for layer in layers:
        layer.linear_map = partial(record, layer)  # type: ignore[method-assign]
    try:
        yield calls
    finally:
        for layer in layers:
            del layer.linear_map
