"""Limits of trained bit widths, applied after each optimizer step."""

import logging
import math

import torch
from torch import Tensor, nn

from pquant.layers.queries import trained_quantizers
from pquant.quantization.hgq import HGQQuantizer
from pquant.quantization.quantizer import MOST_BITS

log = logging.getLogger(__name__)


class BitRange:
    """Clamps the trained bits of a model to [-32, 32] after each step, and warns once for each quantizer whose bits left this range.

    Fractional bits are also kept at ``min_f`` or above, without a warning.

    The first quantizer of the model stores the state: the number of steps, and a buffer, not saved in checkpoints, with the step in which each
    parameter left the range (0: never; negative: a warning was logged). Both start again when a run is resumed, and the buffer also for another part
    of the model that starts with the same quantizer. Only :meth:`warn` waits for the GPU.
    """

    def __init__(self, model: nn.Module) -> None:
        self.places = trained_quantizers(model)
        self.bits = [parameter.detach() for quantizer in self.places for parameter in quantizer.parameters()]
        self.lowest = [_lowest(quantizer, parameter) for quantizer in self.places for parameter in quantizer.parameters()]

    @torch.no_grad()
    def on_batch_end(self) -> None:
        """Clamp the bits, and record which of them left the range."""
        if not self.bits:
            return
        steps, first = self._steps(), next(iter(self.places))
        first.steps_taken += 1
        beyond = torch.stack(torch._foreach_norm(self.bits, math.inf)).le(MOST_BITS).logical_not_()  # NaN counts as outside
        torch._foreach_clamp_min_(self.bits, self.lowest)
        torch._foreach_clamp_max_(self.bits, MOST_BITS)
        steps.masked_fill_(beyond & (steps == 0), first.steps_taken)

    def warn(self) -> None:
        """Log a warning for each quantizer that left the range since the last call; waits for the GPU."""
        if not self.bits:
            return
        steps = self._steps()
        places = [place for quantizer, place in self.places.items() for _ in quantizer.parameters()]
        left: dict[str, int] = {}
        for place, step in zip(places, steps.tolist(), strict=True):
            if step > 0:
                left.setdefault(place, step)
        for place, step in left.items():
            log.warning("%s: trained bits left [-32, 32] in step %d of this process and were clamped; lower optimizer.lr or hgq_lr", place, step)
        steps.abs_().neg_()

    def _steps(self) -> Tensor:
        first = next(iter(self.places))
        if len(getattr(first, "range_steps", ())) != len(self.bits):
            with torch.inference_mode(False):
                first.register_buffer("range_steps", torch.zeros(len(self.bits), dtype=torch.int64, device=first.f.device), persistent=False)
        return first.range_steps  # type: ignore[return-value]


def _lowest(quantizer: HGQQuantizer, parameter: nn.Parameter) -> float:
    """Return the lower bound of a parameter of a quantizer, in bits."""
    return -MOST_BITS if parameter is not quantizer.f or quantizer.min_f is None else float(quantizer.min_f)
