"""A run that fails within every stage and goes on from its checkpoint file ends as one that never failed, whatever prunes and quantizes it."""

import itertools
import random
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import pquant
from pquant.data import Splits
from pquant.pruning import DST, NoPruning, PruningMethod
from pquant.quantization import Quantization
from pquant.training import Training
from pquant.training.checkpoint import load_checkpoint, save_checkpoint
from pquant.training.p_norm import PSGD, PAdam
from pquant.training.trainer import Trainer

from ..methods import every_method

METHODS = [NoPruning(), *every_method(start=3, delta=5, autotune_epochs=2)]
FIXED = {
    "default_weight_keep_negatives": True,
    "default_weight_fractional_bits": 7,
    "default_data_keep_negatives": True,
    "default_data_integer_bits": 3,
    "default_data_fractional_bits": 4,
}
HGQ = {"use_hgq": True, "hgq_beta_schedule": [[0, 1e-6], [4, 1e-3]], "granularity": "per_weight", "data_granularity": "per_channel"}
BUDGET = HGQ | {"hgq_beta_schedule": [], "target_ebops": 1500}
QUANTIZATIONS = {
    "none": Quantization(enable_quantization=False),
    "fixed": Quantization(**FIXED),
    "hgq": Quantization(**FIXED, **HGQ),
    "budget": Quantization(**FIXED, **BUDGET),
}
ADAM = partial(torch.optim.Adam, lr=1e-2)
OTHERS = {
    "dynamic data": (Quantization(**FIXED, dynamic_data_quantization=True), ADAM),
    "least fractional bits": (Quantization(**FIXED, **HGQ, min_frac_bits=3, hgq_lr=0.1), ADAM),
    "p-norm Adam": (Quantization(**FIXED), partial(PAdam, lr=1e-2, weight_decay=1e-2)),
    "p-norm SGD": (Quantization(**FIXED), partial(PSGD, lr=1e-2, momentum=0.9, weight_decay=1e-2, p_norm=0.8)),
}
STEPS = 4
LENGTHS = {"pretraining_epochs": 2, "epochs": 2, "rounds": 2, "fine_tuning_epochs": 2, "batch_size": 16}


class Killed(Exception):  # noqa: N818
    pass


def trainer(method: PruningMethod, quantization: Quantization, training: Training, optimizer: partial = ADAM) -> Trainer:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(96, 6, generator=generator), torch.randint(0, 3, (96,), generator=generator)
    splits = Splits(*(TensorDataset(x[part], y[part]) for part in (slice(0, 64), slice(64, 80), slice(80, 96))), num_classes=3)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3))
    cosine = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=training.total_epochs)
    model = pquant.compress(net, method, quantization, torch.zeros(2, 6))
    return Trainer(model, splits, training, optimizer, cosine, torch.device("cpu"), seed=0)


def interrupted(make: partial[Trainer], path: Path, deaths: list[int], evaluated_only: bool = False) -> Trainer:
    """Return the trainer that came to the end, after one that died at each of the steps ``deaths``, counted from its own start on."""
    for death in [*deaths, None]:
        run, steps = make(), itertools.count(1)
        if path.exists():
            run.load_state_dict(load_checkpoint(path))

        def step(steps: itertools.count = steps, death: int | None = death) -> None:
            if next(steps) == death:
                raise Killed

        try:
            run.fit(lambda row, run=run: evaluated_only and "ebops" not in row or save_checkpoint(path, run.state_dict()), after_step=step)
        except Killed:
            continue
        assert death is None
        return run
    raise AssertionError


@pytest.mark.parametrize("bits", QUANTIZATIONS)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_a_run_killed_within_every_stage_ends_bit_identical(method: PruningMethod, bits: str, tmp_path: Path) -> None:
    make = partial(trainer, method, QUANTIZATIONS[bits], Training(**LENGTHS, rewind="every-round", save_weights_epoch=1))
    check_kills(make, random.Random(f"{type(method).__name__} {bits}"), tmp_path)


@pytest.mark.parametrize("kind", OTHERS)
def test_so_does_one_with_other_bits_or_another_optimizer(kind: str, tmp_path: Path) -> None:
    quantization, optimizer = OTHERS[kind]
    check_kills(partial(trainer, DST(alpha=1e-2), quantization, Training(**LENGTHS), optimizer), random.Random(kind), tmp_path)


def check_kills(make: partial[Trainer], moments: random.Random, tmp_path: Path) -> None:
    whole = make()
    whole.fit(lambda row: None)
    deaths = [moments.randint(1, STEPS)] + [STEPS + moments.randint(1, STEPS) for _ in range(4)]
    ended = interrupted(make, tmp_path / "checkpoint.pt", deaths)
    assert [{**row, "seconds": 0} for row in ended.rows] == [{**row, "seconds": 0} for row in whole.rows]
    for name, value in whole.model.state_dict().items():
        other = ended.model.state_dict()[name]
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name


@pytest.mark.parametrize("bits", ["hgq", "budget"])
def test_a_run_with_few_evaluations_trains_the_epochs_since_the_last_one_again(bits: str, tmp_path: Path) -> None:
    lengths = Training(**(LENGTHS | {"epochs": 4}), rewind="every-round", save_weights_epoch=1, evaluate_every=3)
    make = partial(trainer, DST(alpha=1e-2), QUANTIZATIONS[bits], lengths)
    whole = make()
    whole.fit(lambda row: None)
    ended = interrupted(make, tmp_path / "checkpoint.pt", [2, 5 * STEPS + 1, 6 * STEPS, STEPS + 1], evaluated_only=True)
    assert [{**row, "seconds": 0} for row in ended.rows] == [{**row, "seconds": 0} for row in whole.rows]
    assert all(torch.equal(value, ended.model.state_dict()[name]) for name, value in whole.model.state_dict().items() if torch.is_tensor(value))
