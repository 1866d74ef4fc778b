"""pquant: train neural networks while pruning and quantizing them."""

import pquant.startup  # noqa: F401, I001  (before the imports that take long)
from pquant.installation import VERSION, warn_of_other_package
from pquant.layers.calibrate import calibrate, trace_ranges
from pquant.layers.convert import compress
from pquant.layers.coverage import coverage
from pquant.layers.finalize import finalize
from pquant.layers.unconverted import unconverted
from pquant.metrics import ebops, layer_table, model_metrics, penalty, sparsity
from pquant.pruning.one_shot import prune_one_shot
from pquant.reporting.layers import summarize
from pquant.trained_model import TrainedModel, load
from pquant.training.lifecycle import on_batch_end, on_epoch_end, on_round_end, set_stage
from pquant.training.optimizer import parameter_groups
from pquant.training.stage import Horizon, Stage

__version__ = VERSION
warn_of_other_package()

__all__ = [
    "Horizon",
    "Stage",
    "TrainedModel",
    "calibrate",
    "compress",
    "coverage",
    "ebops",
    "finalize",
    "layer_table",
    "load",
    "model_metrics",
    "on_batch_end",
    "on_epoch_end",
    "on_round_end",
    "parameter_groups",
    "penalty",
    "prune_one_shot",
    "set_stage",
    "sparsity",
    "summarize",
    "trace_ranges",
    "unconverted",
]
