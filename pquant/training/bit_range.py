"""Trained bit widths stay inside the range of a format, whatever an optimizer step makes of them."""

import logging
import math

import torch
from torch import Tensor, nn

from pquant.layers.base import QuantizedLayer
from pquant.quantization.hgq import MOST_BITS, HGQQuantizer

log = logging.getLogger(__name__)


class BitRange:
    """Clamps the trained bits of a model to [-32, 32] after each step, and warns once of each quantizer whose bits went beyond.

    The first quantizer holds what is to be remembered between calls: the number of steps, and in a buffer that no checkpoint has the step in which
    each one left the range (0: none, negative: warned of). Nothing waits for the device before :meth:`warn`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.places: dict[HGQQuantizer, str] = {}
        for layer in model.modules():
            for place, child in layer.named_children() if isinstance(layer, QuantizedLayer) else ():
                if isinstance(child, HGQQuantizer):
                    self.places.setdefault(child, f"layer '{layer.name}', {place.replace('_', ' ')}")
        self.bits = [(place, parameter.detach()) for place, child in enumerate(self.places) for parameter in child.parameters()]

    @torch.no_grad()
    def on_batch_end(self) -> None:
        """Clamp, and note which quantizers were beyond."""
        if not self.bits:
            return
        tensors, steps, first = [tensor for _, tensor in self.bits], self._steps(), next(iter(self.places))
        first.steps_taken += 1
        beyond = torch.stack(torch._foreach_norm(tensors, math.inf)) > MOST_BITS
        torch._foreach_clamp_min_(tensors, -MOST_BITS)
        torch._foreach_clamp_max_(tensors, MOST_BITS)
        steps.masked_fill_(beyond & (steps == 0), first.steps_taken)

    def warn(self) -> None:
        """Log each quantizer that left the range and was not warned of yet; waits for the device."""
        if not self.bits:
            return
        steps, warned, names = self._steps(), set(), list(self.places.values())
        for number, (step, (place, _)) in enumerate(zip(steps.tolist(), self.bits, strict=False)):
            if step > 0:
                steps[number] = -step
                if place not in warned:
                    log.warning("%s: trained bits left [-32, 32] in step %d and were clamped; lower optimizer.lr or hgq_lr", names[place], step)
                warned.add(place)

    def _steps(self) -> Tensor:
        first = next(iter(self.places))
        if not isinstance(getattr(first, "range_steps", None), Tensor):
            first.register_buffer("range_steps", torch.zeros(len(self.bits), dtype=torch.int64, device=first.f.device), persistent=False)
        return first.range_steps  # type: ignore[return-value]
