"""Base classes of methods that collect activations over a window of training steps and then prune once."""

import logging
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from pquant.pruning.method import Pruner, PruningMethod
from pquant.training.stage import Horizon, Stage

log = logging.getLogger(__name__)


class WindowPruner(Pruner):
    """Collects statistics of a layer's activations while the window is open, and prunes once, when the window closes.

    A subclass sets ``collects`` ("input" or "output"), and defines ``observe``, which counts batches in ``seen``, and ``choose``. The buffer
    ``chosen`` is true once the mask is; a trainer that undoes the step in which the window closes makes it false again.
    """

    collects: ClassVar[Literal["input", "output"]]
    state: ClassVar[tuple[str, ...]] = ("step", "pruned")
    seen: Tensor
    chosen: Tensor

    def __init__(self, method: "WindowMethod", weight: Tensor) -> None:
        super().__init__(method, weight)
        self.method: WindowMethod = method
        self.step, self.pruned = 0, False
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64, device=weight.device))
        self.register_buffer("chosen", torch.zeros((), dtype=torch.bool, device=weight.device), persistent=False)
        self._needs: frozenset[str] = frozenset()

    def choose(self, weight: Tensor) -> Tensor:
        """Return the mask, a boolean tensor that broadcasts with ``weight``, from the collected statistics."""
        raise NotImplementedError

    @property
    def needs(self) -> frozenset[str]:
        """Return the activations that the method collects, and nothing while the window is closed."""
        return self._needs

    def on_stage_start(self, stage: Stage, horizon: Horizon | None = None) -> None:
        """Start a stage, and open the window if it begins at the first step."""
        super().on_stage_start(stage, horizon)
        self._open_or_close()

    def on_batch_end(self, weight: Tensor) -> None:
        """Count a training step, and prune at the end of the window."""
        if self.stage is not Stage.TRAIN or self.pruned:
            return
        self.step += 1
        if self.step >= self.method.window(self.horizon)[1]:
            self.prune(weight)
        self._open_or_close()

    def on_epoch_end(self, weight: Tensor, loss: float | None = None) -> None:
        """Open the window again if the step in which it closed was undone."""
        self.pruned = self.pruned and bool(self.chosen)
        self._open_or_close()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the counters and the state of the window."""
        super().set_extra_state(state)
        self.chosen.fill_(self.pruned)
        self._open_or_close()

    @property
    def opens(self) -> bool:
        """Whether the window should be open now."""
        return self.stage is Stage.TRAIN and not self.pruned and self.step >= self.method.window(self.horizon)[0]

    def _open_or_close(self) -> None:
        self._needs = frozenset({self.collects}) if self.opens else frozenset()

    def sum_by_feature(self, x: Tensor) -> Tensor:
        """Return (features,) for an input or output, (..., features) of a dense layer or ([batch,] features, *positions) of a convolution."""
        features = x.ndim + 1 - self.mask.ndim
        return x.sum([axis for axis in range(x.ndim) if axis != features]) if x.ndim > 1 else x

    @torch.no_grad()
    def prune(self, weight: Tensor) -> None:
        """Compute the final mask.

        Raises:
            RuntimeError: no activations were collected.
        """
        if not self.seen:
            name = type(self.method).__name__
            raise RuntimeError(f"{name} has seen no {self.collects} of layer '{self.layer}': run training steps in the train stage before pruning")
        self.mask.copy_(self.choose(weight).expand_as(self.mask))
        self._end()

    def _end(self) -> None:
        self.pruned = True
        self.chosen.fill_(True)

    def freeze(self, weight: Tensor) -> Tensor:
        """Freeze the mask. If training ended inside the window, compute the mask first, from the activations collected so far."""
        if self.stage is Stage.TRAIN and not (self.pruned and self.chosen):
            name = type(self.method).__name__
            log.warning("%s: training ended before its window closed; pruning with the %d batches collected", name, int(self.seen))
            self.prune(weight)
        return super().freeze(weight)


class WindowMethod(PruningMethod):
    """A method that collects activations for ``t_delta`` steps of the train stage, after the first ``t_start_collecting_batch`` steps."""

    t_delta: int
    t_start_collecting_batch: int

    def window(self, horizon: Horizon | None) -> tuple[int, int]:
        """Return the first step of the window and the step after its last, limited to the training steps if their number is known."""
        end = self.t_start_collecting_batch + self.t_delta
        if horizon is None:
            return self.t_start_collecting_batch, end
        return min(self.t_start_collecting_batch, max(horizon.steps - 1, 0)), min(end, horizon.steps)

    def warnings(self, horizon: Horizon) -> list[str]:
        """Warn when the window does not fit the training steps."""
        end = self.t_start_collecting_batch + self.t_delta
        if end <= horizon.steps:
            return []
        start, stop = self.window(horizon)
        return [
            f"{type(self).__name__}'s window (steps {self.t_start_collecting_batch} to {end}) does not fit the {horizon.steps} training steps:"
            f" it will prune at the last step, with {stop - start} batches and no training after it; t_start_collecting_batch + t_delta <="
            f" {horizon.steps // 2} leaves half of the steps for training after pruning"
        ]
