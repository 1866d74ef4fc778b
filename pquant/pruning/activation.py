"""Pruning of channels that are rarely positive, as in H. Hu, R. Peng, Y. Tai, C. Tang, "Network Trimming" (APoZ), 2016, arXiv 1607.03250."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pquant.pruning.window import WindowMethod, WindowPruner
from pquant.settings import schema, setting
from pquant.training import distributed
from pquant.training.stage import Stage


class ActivationPruner(WindowPruner):
    """Measures the activity of each output channel over the window, then removes the inactive channels once.

    ``activity`` (out,) is the sum of 1[y > 0] or of |y| over the outputs y of each channel; ``values`` is the number of outputs.
    """

    collects = "output"
    activity: Tensor
    values: Tensor

    def __init__(self, method: "ActivationPruning", weight: Tensor) -> None:
        super().__init__(method, weight)
        self.method: ActivationPruning = method
        self.register_buffer("values", torch.zeros((), dtype=torch.int64, device=weight.device))
        self.register_buffer("activity", weight.new_zeros(weight.shape[0]))

    @property
    def exempt(self) -> bool:
        """Whether the layer keeps all channels because they are the model's outputs."""
        return self.makes_output and not self.method.prune_output_layer

    @property
    def opens(self) -> bool:
        """Whether the pruner should collect outputs now."""
        return super().opens and not self.exempt

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Add the activity of the output ``x``: (..., out) of a dense layer, (batch, out, *positions) of a convolution."""
        active = self.sum_by_feature(x > 0 if self.method.statistic == "frequency" else x.abs()).to(self.activity)
        self.activity.add_(distributed.total(active))
        self.values.add_(distributed.total(torch.full_like(self.values, x.numel() // len(active))))
        self.seen.add_(1)

    def prune(self, weight: Tensor) -> None:
        """Remove the inactive channels, unless the layer is exempt."""
        if self.exempt:
            self._end()
        else:
            super().prune(weight)

    def choose(self, weight: Tensor) -> Tensor:
        """Return the mask (out, 1, ...) that keeps channels with a mean activity above the threshold, and always the most active channel."""
        keep = self.activity / self.values > self.method.threshold
        keep[self.activity.argmax()] = True
        return keep.view(-1, *(1,) * (weight.ndim - 1))

    def prune_bias(self, bias: Tensor, weight: Tensor) -> Tensor:
        """Return the bias (out,), set to 0 for removed channels."""
        return bias if self.stage is Stage.PRETRAIN else bias * self.mask.flatten(1)[:, 0]


@schema("pruning", "activation_pruning")
@dataclass(frozen=True)
class ActivationPruning(WindowMethod):
    """Removes output channels (weights and bias) that are rarely active.

    Pretraining: off. Training: the pruner collects outputs before the activation function over a window of steps. Then it removes each channel o
    with p_o <= ``threshold`` permanently, and training continues without it. A window that is longer than the train stage ends with it, and a warning
    says so. Fine-tuning: the same mask.

    p_o is the mean of ``statistic`` over examples, positions and steps. The most active channel of a layer always stays. Name layers in
    ``disable_pruning_for_layers`` if all their channels must stay: layers whose outputs are added in a residual sum, and heads other than the last
    layer.

    Args:
        pruning_method: the method's name in the specification.
        threshold: channels with at most this activity are pruned.
        t_delta: number of steps in which outputs are recorded.
        t_start_collecting_batch: number of steps of the train stage before the recording starts.
        statistic: "frequency": 1[y_o > 0], the fraction of outputs that a ReLU after the layer lets pass; "mean_abs": |y_o|, for layers without a
            ReLU after them.
        prune_output_layer: whether channels of the output layer of the model may be pruned too.
    """

    pruning_method: Literal["activation_pruning"] = "activation_pruning"
    threshold: float = setting(0.3, ge=0)
    t_delta: int = setting(50, ge=1)
    t_start_collecting_batch: int = setting(50, ge=0)
    statistic: Literal["frequency", "mean_abs"] = "frequency"
    prune_output_layer: bool = False

    def __post_init__(self) -> None:
        """Check the fields, and that a frequency can exceed the threshold."""
        super().__post_init__()
        if self.statistic == "frequency" and self.threshold >= 1:
            raise self.error("threshold", "below 1, as it is compared with a frequency")

    def pruner(self, weight: Tensor, layer_type: type[nn.Module]) -> ActivationPruner:
        """Return the pruner of ``weight``."""
        return ActivationPruner(self, weight)
