"""The calls of each layer of a model in one inference."""

from contextlib import suppress

import torch
from torch import nn

from pquant.errors import ConfigError
from pquant.layers.base import Call, Calls, Shape
from pquant.layers.example import Example, resized, tensors_in
from pquant.layers.trace import Shapes, Trace, common


def traced(model: nn.Module, example: Example) -> tuple[Trace, dict[nn.Module, Calls]]:
    """Return a trace of the model in evaluation mode, and the calls of each of its layers with shapes for one example.

    A second trace in training mode corrects the first one: ``feeds`` keeps only what holds in both modes, and ``overwriting`` joins both modes. Where
    the model does not accept the example in training mode, ``feeds`` is empty and every in-place ReLU counts as overwriting.

    Inputs with two and with three examples show which axis of a layer's input is the batch. The batch axis of the model's input is the first one. It
    is the second one if the output of an example depends on the others along the first axis but not along the second, as in attention with the axes
    (sequence, batch, features).
    """
    trace, training = Trace(model, example), _in_training(model, example)
    _check_batch(model, trace, example)
    trace.feeds = {module: common(feed, training.feeds.get(module, ()) if training else ()) for module, feed in trace.feeds.items()}
    trace.overwriting.update(training.overwriting if training else trace.shapes)
    chosen = _pair(model, example, 0)
    if chosen is None or not chosen[2]:
        second = _pair(model, example, 1)
        chosen = second if second and second[2] else chosen
    if chosen is None:
        return trace, {module: tuple(map(_as_it_is, calls)) for module, calls in trace.shapes.items()}
    two, three, _ = chosen
    return trace, {module: _for_one_example(calls, three.shapes.get(module, [])) for module, calls in two.shapes.items()}


def _in_training(model: nn.Module, example: Example) -> Trace | None:
    """Return the trace in training mode, with a batch of 2 where the given example fails, as one example does in batch norm. None if both fail."""
    with suppress(Exception):
        return Trace(model, example, training=True)
    with suppress(Exception):
        return Trace(model, resized(example, 0, 2), training=True)
    return None


def _check_batch(model: nn.Module, trace: Trace, example: Example) -> None:
    """Raise a ConfigError where a convolution would read the example input as a single example without a batch axis."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            for (shape, *_), *_ in trace.shapes.get(module, []):
                if len(shape) == len(module.kernel_size) + 1 and [len(shape)] == [tensor.ndim for tensor in tensors_in(example)][:1]:
                    raise ConfigError(
                        f"example_input must be a batch: layer '{name}' got an input of shape {shape}, which has no batch axis; give"
                        " example_input.unsqueeze(0)"
                    )


def _pair(model: nn.Module, example: Example, axis: int) -> tuple[Trace, Trace, bool] | None:
    """Return the traces of two and of three examples along ``axis``, and whether the output of each example is independent of the others.

    None where the model raises any error for these inputs.
    """
    with suppress(Exception):
        two, three = (Trace(model, resized(example, axis, count)) for count in (2, 3))
        return two, three, _independent(two, three)
    return None


def _independent(two: Trace, three: Trace) -> bool:
    """Return whether the outputs of the first two examples are the same, up to rounding, with and without a third example."""
    for small, large in zip(tensors_in(two.output), tensors_in(three.output), strict=False):
        axes = [axis for axis, (a, b) in enumerate(zip(small.shape, large.shape, strict=False)) if a != b]
        if small.ndim != large.ndim or len(axes) != 1:
            return False
        part = large.narrow(axes[0], 0, small.shape[axes[0]])
        if small.is_floating_point() and small.numel():
            size = float(small.nan_to_num(0, 0, 0).abs().max())
            if not torch.allclose(small, part, rtol=1e-3, atol=1e-4 * size, equal_nan=True):
                return False
    return True


def _as_it_is(shapes: Shapes) -> Call:
    (first, *others), outputs, channel_axis = shapes
    if len(first) < 2 or channel_axis == -len(first):
        return Call(first, outputs, None, channel_axis, tuple((shape, None) for shape in others))
    return Call(
        (1, *first[1:]),
        (1, *outputs[1:]),
        0,
        channel_axis,
        tuple(((1, *shape[1:]), 0) if shape[:1] == first[:1] else (shape, None) for shape in others),
    )


def _for_one_example(two: list[Shapes], three: list[Shapes]) -> Calls:
    """Return the calls for one example, from those for two and for three; one example's share where the number of calls grows with the batch."""
    if len(two) != len(three):
        share = two[: max(2 * len(two) - len(three), 1)]
        return tuple(Call(inputs[0], outputs, None, axis, tuple((shape, None) for shape in inputs[1:])) for inputs, outputs, axis in share)
    calls = []
    for (inputs, outputs, channel_axis), (more_inputs, more_outputs, _) in zip(two, three, strict=True):
        first, *others = (_of_one(*pair) for pair in zip(inputs, more_inputs, strict=True))
        calls.append(Call(first[0], _of_one(outputs, more_outputs)[0], first[1], channel_axis, tuple(others)))
    return tuple(calls)


def _of_one(two: Shape, three: Shape) -> tuple[Shape, int | None]:
    """Return the shape for one example and its batch axis, from the shapes for two and for three."""
    growing = [axis for axis, (a, b) in enumerate(zip(two, three, strict=False)) if a != b]
    return tuple(2 * a - b for a, b in zip(two, three, strict=False)), growing[0] if growing else None
