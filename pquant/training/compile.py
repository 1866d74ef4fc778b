"""Compiled training steps: the decision whether ``torch.compile`` saves time for the remaining steps, and the losses of a step."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from shutil import which
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from pquant.errors import ConfigError
from pquant.layers.base import QuantizedLayer
from pquant.pruning.method import Pruner
from pquant.training import distributed

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
TRITON_TAKES = (7, 0)
"""Lowest compute capability of a GPU that Triton supports."""
WARM_UP, TIMED = 5, 20
"""Number of eager steps before timing starts, and number of timed steps."""
SAVED = 0.35
"""Fraction of the time of an eager step that compiling saves; a lower bound for most rows of ``benchmarks/step_time.py``."""
SECONDS_PER_GRAPH, SECONDS_PER_LAYER = 10.0, 4.0
"""Seconds to compile one graph on two cores without a cache: a constant, plus a time per layer."""
COMPUTED_ONCE: dict[str, str | int | bool | Callable[..., Any]] = {"realize_opcount_threshold": 4}
"""Compiler option for a CPU: a tensor that takes more operations than this is computed once, not again for each value that it broadcasts to.

Without it, most of a step is spent on powers of two of trained bits, in forward and backward.
"""
SMALL_MODEL = 5_000_000
"""Number of parameters up to which CUDA graphs make steps on a GPU faster."""


class StepCompiler:
    """Computes the losses of training steps, eager or compiled.

    With ``mode`` "auto" the first eager steps are timed. Steps are then compiled if the remaining steps save more time than it takes to compile the
    graphs of the remaining stages. On a CPU one graph takes batches of all sizes. These steps stay eager: batches of one example on a CPU, batches of
    another size than the first one on a GPU, and steps in which pruners collect activations.

    Args:
        losses: computes the losses of a batch: inputs, targets and weights, if any.
        model: the model that is trained.
        mode: the setting ``training.compile``.
        device: device of the training.
        graphs_and_steps: returns how many stages and how many steps are left.

    Raises:
        ConfigError: ``mode`` is True, and a compiler is missing.
    """

    def __init__(
        self,
        losses: distributed.Losses,
        model: nn.Module,
        mode: bool | Literal["auto"],
        device: torch.device,
        graphs_and_steps: Callable[[], tuple[int, int]],
    ) -> None:
        self.losses, self.model, self.mode, self.device, self.graphs_and_steps = losses, model, mode, device, graphs_and_steps
        missing = missing_to_compile(device) if mode is True else None
        if missing:
            raise ConfigError(f"Training.compile must be false where there is no {missing}, got True")
        self.compiled: bool | None = None if mode == "auto" else mode
        self.pruners = [module for module in model.modules() if isinstance(module, Pruner)]
        self._graph: distributed.Losses | None = None
        self._full, self._timed = 0, list[float]()

    def __call__(self, *batch: Tensor) -> tuple[Tensor, ...]:
        """Return the losses of a batch."""
        examples = len(batch[0])
        self._full = self._full or examples
        if not self.compiled or self._stays_eager(examples):
            return self.losses(*batch)
        if self._graph is None:
            self._graph = in_one_graph(self.losses, self.model, self.device)
        if self.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        else:
            for tensor in batch:
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        try:
            return self._graph(*batch)
        except Exception as error:
            if self.mode is True:
                raise
            log.warning("steps stay eager: compiling failed with %s: %s", type(error).__name__, str(error).splitlines()[0] if str(error) else "")
            self.compiled = False
            return self.losses(*batch)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Time the step in the block until the decision, which follows the last timed step."""
        if self.compiled is not None:
            yield
            return
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        self._timed.append(time.perf_counter() - start)
        if len(self._timed) == WARM_UP + TIMED:
            self.decide(sorted(self._timed[WARM_UP:])[TIMED // 2])

    def decide(self, seconds_per_step: float) -> None:
        """Decide whether compiling saves time for the remaining steps, and log the decision; all processes of a run decide alike."""
        graphs, steps = self.graphs_and_steps()
        layers = sum(isinstance(module, QuantizedLayer) for module in self.model.modules())
        seconds = float(distributed.highest(torch.tensor(seconds_per_step, device=self.device)))
        saved, cost = SAVED * steps * seconds, graphs * (SECONDS_PER_GRAPH + SECONDS_PER_LAYER * layers)
        missing = missing_to_compile(self.device) if saved > cost else None
        self.compiled = saved > cost and not missing
        log.info(
            "steps %s: the %d left take %.2g ms each eagerly, so compiling would save about %.0f s and take about %.0f s%s",
            "are compiled" if self.compiled else "stay eager", steps, 1e3 * seconds, saved, cost,
            f", but there is no {missing}" if missing else "",
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Return the decision (None before it is made) and the seconds of the steps timed so far."""
        return {"compiled": self.compiled, "timed": list(self._timed)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the decision of the resumed run, so that the results are the same bit for bit."""
        missing = missing_to_compile(self.device) if state["compiled"] and self.mode else None
        if missing:
            log.warning("the run was compiled, and there is no %s here: the last bits of its results may differ", missing)
        if self.mode == "auto":
            self.compiled, self._timed = state["compiled"] and not missing, list(state["timed"])

    def _stays_eager(self, examples: int) -> bool:
        takes = examples > 1 if self.device.type == "cpu" else examples == self._full
        return not takes or any(pruner.needs for pruner in self.pruners)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def in_one_graph(losses: Callable[P, R], model: nn.Module, device: torch.device) -> Callable[P, R]:
    """Return ``losses`` compiled into one graph: on a CPU for batches of all sizes, on a GPU with CUDA graphs if the model is small."""
    if device.type == "cpu":
        return torch.compile(losses, dynamic=False, options=COMPUTED_ONCE)
    small = sum(parameter.numel() for parameter in model.parameters()) <= SMALL_MODEL
    return torch.compile(losses, dynamic=False, mode="reduce-overhead" if device.type == "cuda" and small else None)


def missing_to_compile(device: torch.device) -> str | None:
    """Return the name of what is missing to compile graphs for ``device``; None if nothing is missing."""
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler

        try:
            get_cpp_compiler()
        except Exception:
            return "C++ compiler such as g++"
    if device.type == "cuda":
        if find_spec("triton") is None:
            return "Triton"
        if torch.cuda.is_available() and torch.cuda.get_device_capability(device) < TRITON_TAKES:
            return f"GPU of compute capability {'.'.join(map(str, TRITON_TAKES))}, which Triton needs"
        if not (os.environ.get("CC") or which("gcc") or which("clang")):
            return "C compiler such as gcc, which Triton needs"
    return None
