"""Training: stages, the training loop, checkpoints."""

from pquant.training.stage import Horizon, Stage
from pquant.training.training import Training

__all__ = ["Horizon", "Stage", "Training"]
