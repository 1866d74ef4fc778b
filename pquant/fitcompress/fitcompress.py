"""The settings of the fitcompress section: a search for the bits and sparsity of each layer before training.

B. Zandonati et al., "Towards Optimal Compression: Joint Pruning and Quantization", 2023, arXiv 2302.07612.
"""

import copy
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from pquant.data.batches import batches
from pquant.errors import ConfigError
from pquant.fitcompress.deferred_quantization import defer, released
from pquant.fitcompress.fisher import Loss, StoppingRule, fisher
from pquant.fitcompress.mask import SearchedMask
from pquant.fitcompress.result import Result, final_masks, take_on
from pquant.fitcompress.search import search
from pquant.fitcompress.space import CompressionSpace, SearchedLayer, Tensors
from pquant.layers.base import CompressedLayer
from pquant.layers.queries import weight_layers
from pquant.pruning.method import NoPruner, NoPruning, PruningMethod
from pquant.quantization.quantization import Quantization
from pquant.quantization.quantizer import FLOAT_BITS, FixedPointQuantizer
from pquant.settings import Settings, schema, setting
from pquant.training.training import Training

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PruningSchedule(Settings):
    """Pruned fractions of weights to try: 1 - 10^x.

    Args:
        start: first x.
        end: last x.
        steps: number of values of x, evenly spaced.
    """

    start: float = setting(0.0, le=0)
    end: float = setting(-3.0, le=0)
    steps: int = setting(40, ge=2)

    def __post_init__(self) -> None:
        """Check the fields, and that x falls from ``start`` to ``end``."""
        super().__post_init__()
        if self.start <= self.end:
            raise self.error("start", f"above end = {self.end:g}")

    def shares(self) -> tuple[float, ...]:
        """Return the pruned fractions, 0 first."""
        curve = torch.linspace(self.start, self.end, self.steps, dtype=torch.float64)
        return (0.0, *(share for share in (1 - 10**curve).tolist() if share > 0))


@schema("fitcompress", "fitcompress")
@dataclass(frozen=True)
class FITCompress(Settings):
    """A search for bits and sparsity before training; switched off by default.

    Pretraining: values are float. Start of the train stage: the search runs on a copy of the model; the quantizers of the weights get its bits, the
    pruners get its masks, and the weights do not change. Training and fine-tuning use these bits and masks.

    Weights whose bits are set in ``quantization.layer_specific`` keep those bits. Data, biases and batch norms have the bits of the quantization
    section, and do not count in any size. With ``optimize_pruning`` the search makes the masks, and ``pruning`` must be "none"; its
    ``disable_pruning_for_layers`` still applies. Without it, any pruning method works with the bits of the search.

    Args:
        enable_fitcompress: whether the search runs.
        optimize_quantization: whether the search lowers the bits of weights, layer by layer.
        quantization_schedule: bits to try in this order: integer and fractional bits together, without the sign bit.
        pruning_schedule: shares of pruned weights to try in order.
        compression_goal: size to reach: the bits of all remaining weights, divided by those of float32 weights.
        optimize_pruning: whether the search prunes weights, over all layers together.
        greedy_astar: whether the search discards all other open configurations after each step; else it continues until no shorter path is left.
        approximate: whether the Fisher information is estimated once for each pruned share; else for each configuration.
        f_lambda: weight of the remaining distance to the goal in the order of the search.
        max_states: maximum number of configurations to expand, if the search is not greedy.
        fisher: number of examples for the estimate of the Fisher information.
        result: ``fitcompress.json`` of an earlier run, which is used instead of a search.

    Raises:
        ConfigError: a value out of range, or nothing to search.
    """

    enable_fitcompress: bool = False
    optimize_quantization: bool = True
    quantization_schedule: list[float] = setting([7.0, 4.0, 3.0, 2.0])
    pruning_schedule: PruningSchedule = PruningSchedule()
    compression_goal: float = setting(0.10, gt=0, le=1)
    optimize_pruning: bool = False
    greedy_astar: bool = True
    approximate: bool = True
    f_lambda: float = setting(1.0, ge=0)
    max_states: int = setting(20_000, ge=1)
    fisher: StoppingRule = StoppingRule()
    result: str | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        schedule = self.quantization_schedule
        if not schedule or any(bits < 1 or bits > 31 or bits != int(bits) for bits in schedule) or sorted(set(schedule), reverse=True) != schedule:
            raise self.error("quantization_schedule", "whole numbers of bits from 31 to 1, each lower than the one before")
        if self.enable_fitcompress and not (self.optimize_quantization or self.optimize_pruning):
            raise self.error("optimize_pruning", "true when optimize_quantization is false: else there is nothing to search")

    def check(self, pruning: PruningMethod, quantization: Quantization, training: Training) -> None:
        """Raise a ConfigError where settings of other sections conflict with the search."""
        if not self.enable_fitcompress:
            return
        if quantization.budget is not None:
            raise ConfigError(
                "FITCompress searches fixed bits, which no target of EBOPs (Quantization.target_ebops, target_luts) can move: "
                "set fitcompress.compression_goal"
            )
        if quantization.use_hgq:
            raise ConfigError("FITCompress searches the bits that Quantization.use_hgq trains: use quantization=fixed, or fitcompress=off")
        if self.optimize_quantization and not quantization.enable_quantization:
            raise ConfigError("FITCompress.optimize_quantization needs Quantization.enable_quantization: use quantization=fixed")
        if self.optimize_pruning and not isinstance(pruning, NoPruning):
            advice = "use pruning=none, or fitcompress.optimize_pruning=false to search bits alone"
            raise ConfigError(f"FITCompress.optimize_pruning makes the masks that {type(pruning).__name__} would make: {advice}")
        if self.optimize_pruning and not pruning.enable_pruning:
            raise ConfigError("FITCompress.optimize_pruning needs pruning.enable_pruning, got false")
        if not training.epochs:
            raise ConfigError("FITCompress searches at the start of the train stage: Training.epochs must be at least 1, got 0")
        if self.result is not None:
            Result.read(Path(self.result))

    def masks(self, given: PruningMethod) -> PruningMethod:
        """Return the pruning method of the run: the masks of the search with ``optimize_pruning``, else ``given``."""
        if not (self.enable_fitcompress and self.optimize_pruning):
            return given
        return SearchedMask(disable_pruning_for_layers=given.disable_pruning_for_layers, enable_pruning=given.enable_pruning)

    def prepare(self, model: nn.Module) -> list[str]:
        """Defer the quantizers of a compressed model until the search; return a message if the goal cannot be reached, else [].

        Raises:
            ConfigError: ``result`` belongs to another model.
        """
        if not self.enable_fitcompress:
            return []
        defer(model)
        if self.result is not None:
            Result.read(Path(self.result)).check_names(model)
            return []
        layers = self._layers(model).values()
        kept = 1 - self.pruning_schedule.shares()[-1] if self.optimize_pruning else 1.0
        bits = sum(layer.weight.numel() * min(layer.widths) * (kept if layer.prunable else 1.0) for layer in layers)
        # Rounding to 0 may prune more than the schedule does.
        least = bits / FLOAT_BITS / sum(layer.weight.numel() for layer in layers)
        if least <= self.compression_goal or self.optimize_quantization and self.optimize_pruning:
            return []
        return [f"FITCompress.compression_goal {self.compression_goal:g} is out of reach: the schedules end at {least:.4g} of the float32 size"]

    def apply(self, model: nn.Module, data: Dataset[tuple[Tensor, ...]], loss: Loss) -> Result:
        """Set the bits and masks that the search finds, or those of ``result``, in a compressed model, and restore its quantizers.

        Args:
            model: the pretrained model that was given to :meth:`prepare`; its weights do not change.
            data: training examples (input, target).
            loss: mean loss of a batch, a scalar, from (output, target).

        Raises:
            ConfigError: ``result`` is not readable.
        """
        result = self.search(model, data, loss) if self.result is None else Result.read(Path(self.result))
        layers, formats = self._layers(model), {name: layer.format for name, layer in result.layers.items()}
        masks: Tensors = {}
        if any(layer.prunable for layer in layers.values()):
            first = fisher(_searchable(model), self._examples(model, data), loss, self.fisher)
            masks = final_masks(layers, first.weights, result.pruning_share, formats)
        take_on(model, formats, masks)
        return result

    def search(self, model: nn.Module, data: Dataset[tuple[Tensor, ...]], loss: Loss) -> Result:
        """Return the result of the search for a compressed model, which is left untouched; see :meth:`apply`."""
        began = time.perf_counter()
        work = _searchable(model)
        first = fisher(work, self._examples(work, data), loss, self.fisher)
        examples = list(islice(self._examples(work, data), first.iterations))
        log.info("FITCompress: Fisher trace within %.1f %% after %d batches of %d", 100 * first.error, first.iterations, self.fisher.batch_size)

        def information(weights: Tensors) -> Tensors:
            for name, layer in weight_layers(work).items():
                layer.weight.data = layer.stored(weights[name])
            return fisher(work, examples, loss).weights

        layers = self._layers(work)
        shares = self.pruning_schedule.shares() if any(layer.prunable for layer in layers.values()) else (0.0,)
        space = CompressionSpace(layers, shares, information, self.approximate)
        way = search(space, space.start, self.compression_goal, self.f_lambda, self.greedy_astar, self.max_states)
        result = Result.of(model, space, way, first, self.compression_goal)
        size = f"{result.compression:.4f} of the float32 size"
        if way.reached:
            log.info("FITCompress: %s after %d steps, %.1f s", size, len(result.path), time.perf_counter() - began)
        else:
            log.warning("FITCompress cannot reach compression_goal %g with these schedules; training continues with %s", self.compression_goal, size)
        return result

    def _examples(self, model: nn.Module, data: Dataset[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
        device = next(model.parameters()).device
        drawn = batches(data, self.fisher.batch_size, torch.Generator().manual_seed(0))
        return (tuple(tensor.to(device) for tensor in batch) for batch in drawn)

    def _layers(self, model: nn.Module) -> dict[str, SearchedLayer]:
        return {name: self._layer(name, layer) for name, layer in weight_layers(model).items()}

    def _layer(self, name: str, layer: CompressedLayer) -> SearchedLayer:
        weight, quantizer = layer.arranged(layer.weight).detach(), copy.deepcopy(released(layer.weight_quantizer))
        settings = layer.quantization.formats(name).weight
        if isinstance(quantizer, FixedPointQuantizer) and quantizer.auto:
            quantizer.observe(weight)
        if self.optimize_quantization and not quantizer.is_float and not _given_bits(layer.quantization, name):
            widths = (FLOAT_BITS, *(bits + settings.k for bits in self.quantization_schedule))
        else:
            widths = (float(quantizer.width().mean()),)
        prunable = self.optimize_pruning and not isinstance(layer.pruner, NoPruner)
        return SearchedLayer(weight, widths, quantizer, int(settings.k), settings.round_mode, settings.overflow_mode, prunable)


def _searchable(model: nn.Module) -> nn.Module:
    """Return a copy of a compressed model, for evaluation, that computes with float values."""
    work = copy.deepcopy(model)
    work.eval()
    defer(work)
    return work


def _given_bits(quantization: Quantization, name: str) -> bool:
    return bool({"i", "f"} & quantization.rule(name).get("weight", {}).keys())
