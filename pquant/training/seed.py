"""One seed for all random number generators."""

import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed the generators of torch (all devices), numpy and Python; ``seed`` is in [0, 2^32)."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
