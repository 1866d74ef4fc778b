"""Which epoch's weights a run ends with, and when a stage ends early; after a resume as without one."""

import itertools
import logging
import random
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import TensorDataset

import pquant
from pquant.data import Splits
from pquant.errors import ConfigError
from pquant.pruning import CS, DST, MDMM, PDP, ActivationPruning, AutoSparse, Magnitude, NoPruning, PruningMethod, Wanda
from pquant.quantization import Quantization
from pquant.training import Training
from pquant.training.checkpoint import load_checkpoint, save_checkpoint
from pquant.training.selection import Selection
from pquant.training.task import Classification, Regression
from pquant.training.trainer import Trainer

from ..formats import EIGHT_BITS
from ..test_config import build

LENGTHS = Training(pretraining_epochs=12, epochs=3, rounds=2, fine_tuning_epochs=12, batch_size=16)
BEST = replace(LENGTHS, select="best", patience=3)
STEPS = 4
NET = nn.Linear(2, 2)


def row(epoch: int, accuracy: float, stage: str = "finetune", **more: Any) -> dict[str, Any]:
    return {"epoch": epoch, "stage": stage, "round": 0, "val/accuracy": accuracy, "val/loss": 1 - accuracy, "sparsity": 0.5, "ebops": 100.0} | more


def selected(rows: list[dict[str, Any]], training: Training = BEST, sparsity: float | None = None, has_budget: bool = False) -> int | None:
    selection = Selection(training, Classification(), sparsity, has_budget)
    for one in rows:
        selection.update(one, NET)
    return selection.best and selection.best["epoch"]


def test_the_first_of_the_best_epochs_of_the_last_stage_is_selected() -> None:
    rows = [row(1, 0.9, "pretrain"), row(2, 0.8, "train"), row(3, 0.5), row(4, 0.7), row(5, 0.7), row(6, 0.6)]
    assert selected(rows) == 4
    assert selected(rows, replace(BEST, select="last")) is None
    assert selected(rows[:2], replace(BEST, fine_tuning_epochs=0, rounds=1)) == 2
    assert selected([row(1, 0.9, "train"), row(2, 0.1, "train", round=1)], replace(BEST, fine_tuning_epochs=0)) == 2
    assert selected(rows[:1], replace(BEST, fine_tuning_epochs=0, epochs=0)) == 1


def test_the_monitored_value_is_the_metric_or_the_loss() -> None:
    rows = [row(1, 0.5) | {"val/loss": 0.2}, row(2, 0.7) | {"val/loss": 0.3}]
    assert selected(rows) == 2 and selected(rows, replace(BEST, monitor="loss")) == 1
    lower = Selection(BEST, Regression(), None, False)
    for epoch, error in enumerate((3.0, 1.0, 2.0), 1):
        lower.update(row(epoch, 0.0) | {"val/rmse": error}, NET)
    assert lower.best is not None and lower.best["epoch"] == 2


def test_a_candidate_reaches_the_targets_in_the_train_or_finetune_stage() -> None:
    rows = [
        row(1, 0.9, "pretrain", sparsity=0.9),
        row(2, 0.8, "train", sparsity=0.78),
        row(3, 0.7, "train", sparsity=0.791),
        row(4, 0.6, sparsity=0.8),
    ]
    assert selected(rows, sparsity=0.8) == 3 and selected(rows[:2], sparsity=0.8) is None
    ebops = [row(epoch, 1 - epoch / 10, "train", ebops=use, target_ebops=100) for epoch, use in enumerate((106, 105, 90), 1)]
    assert selected(ebops, has_budget=True) == 2
    assert selected([ebops[1] | {"sparsity": 0.1}, ebops[2] | {"sparsity": 0.85}], sparsity=0.8, has_budget=True) == 3


@pytest.mark.parametrize(
    ("method", "goal"),
    [
        (PDP(sparsity=0.7), 0.7),
        (PDP(structured_pruning=True), None),
        (Wanda(sparsity=0.6), 0.6),
        (Wanda(N=1, M=4), 0.75),
        (Magnitude(sparsity=0.3), 0.3),
        (MDMM(target_sparsity=0.4), 0.4),
        (MDMM(target_value=0.2, constraint_type="GreaterThanOrEqual"), 0.2),
        (MDMM(constraint_type="LessThanOrEqual"), None),
        (MDMM(metric_type="StructuredSparsity"), None),
        *((method, None) for method in (CS(), DST(), AutoSparse(), ActivationPruning(), NoPruning())),
    ],
)
def test_each_method_says_its_target(method: PruningMethod, goal: float | None) -> None:
    assert method.goal == (None if goal is None else pytest.approx(goal))


def ended(values: list[float], stage: str = "finetune", **fields: Any) -> list[bool]:
    selection = Selection(replace(BEST, **fields), Classification(), None, False)
    rows = [row(epoch, value, stage) for epoch, value in enumerate(values, 1)]
    return [selection.ends_stage([row(0, 1.0, "train"), *rows[: count + 1]]) for count in range(len(rows))]


def test_patience_counts_evaluations_without_improvement_in_the_stage() -> None:
    values = [0.5, 0.4, 0.5, 0.6, 0.6, 0.6, 0.6]
    assert ended(values) == [False] * 6 + [True]
    assert ended(values, patience=2) == [False, False, True, False, False, True, True]
    assert ended(values, patience=None) == ended(values, "train") == [False] * 7
    assert ended([0.5, 0.51, 0.52, 0.53], patience=3, min_delta=0.1) == [False, False, False, True]
    assert ended([0.5, 0.51, 0.52, 0.53], patience=3) == [False] * 4


def trainer(training: Training, method: PruningMethod | None = None, quantization: Quantization | None = None, lr: float = 3e-2) -> Trainer:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(192, 6, generator=generator), torch.randint(0, 3, (192,), generator=generator)
    splits = Splits(*(TensorDataset(x[part], y[part]) for part in (slice(0, 64), slice(64, 128), slice(128, 192))), num_classes=3)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))
    cosine = partial(CosineAnnealingLR, T_max=training.total_epochs)
    model = pquant.compress(net, method or DST(alpha=1e-2), quantization or FLOAT, torch.zeros(2, 6))
    return Trainer(model, splits, training, partial(torch.optim.Adam, lr=lr), cosine, torch.device("cpu"), seed=0)


FLOAT = Quantization(enable_quantization=False)
TRAINED = replace(EIGHT_BITS, use_hgq=True, target_ebops=2000)
WANDA = Wanda(sparsity=0.5, t_start_collecting_batch=3, t_delta=5)
METHODS = [DST(alpha=1e-2), PDP(sparsity=0.5, epsilon="auto"), Magnitude(sparsity=0.5), WANDA, CS(), NoPruning()]


def test_a_stage_without_improvement_ends_and_the_next_one_begins_at_its_planned_learning_rate(caplog: pytest.LogCaptureFixture) -> None:
    patient, plain = trainer(replace(BEST, monitor="loss")), trainer(LENGTHS)
    with caplog.at_level(logging.INFO):
        patient.fit(lambda row: None)
    plain.fit(lambda row: None)
    numbers = [row["epoch"] for row in patient.rows]
    assert "pretrain ends after epoch" in caplog.text and "no better val/loss in training.patience = 3 evaluations" in caplog.text
    stages = [[row["epoch"] for row in patient.rows if row["stage"] == stage] for stage in ("pretrain", "train", "finetune")]
    assert stages[1] == list(range(13, 19)) and len(stages[0]) < 12 and stages[0] == list(range(1, len(stages[0]) + 1)) and stages[2][0] == 19
    assert patient.position == len(patient.plan) and numbers == sorted(set(numbers))
    rates = {row["epoch"]: row["lr"] for row in plain.rows}
    assert [row["lr"] for row in patient.rows] == pytest.approx([rates[number] for number in numbers])
    losses = [row["val/loss"] for row in patient.rows if row["stage"] == "pretrain"]
    assert len(losses) - 1 - losses.index(min(losses)) == 3


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_the_final_model_is_that_of_the_best_epoch(method: PruningMethod) -> None:
    run, states = trainer(replace(BEST, patience=None), method, FLOAT), {}
    run.fit(lambda row: states.__setitem__(row["epoch"], {name: value.clone() for name, value in run.model.named_parameters()}))
    chosen = run.take_best()
    assert chosen is not None
    goal = method.goal
    candidates = [row for row in run.rows if row["stage"] == "finetune" or goal and row["stage"] == "train" and row["sparsity"] >= goal - 0.01]
    assert chosen == max(candidates, key=lambda row: row["val/accuracy"])["epoch"]
    assert all(torch.equal(value, states[chosen][name]) for name, value in run.model.named_parameters())
    final = pquant.finalize(run.model)
    measured = run.evaluate("validation", "val", final)["val/accuracy"]
    assert measured == pytest.approx(next(row["val/accuracy"] for row in run.rows if row["epoch"] == chosen))
    assert goal is None or pquant.sparsity(final) >= goal - 0.01


def test_where_no_epoch_reaches_the_target_the_last_one_stays(caplog: pytest.LogCaptureFixture) -> None:
    run = trainer(replace(BEST, patience=None), MDMM(target_sparsity=0.9, scale=0.0), FLOAT, lr=1e-4)
    run.fit(lambda row: None)
    before = {name: value.clone() for name, value in run.model.named_parameters()}
    assert run.take_best() is None and "no epoch reached the targets of sparsity and EBOPs" in caplog.text
    assert all(torch.equal(value, before[name]) for name, value in run.model.named_parameters())


def test_an_epoch_that_is_not_evaluated_is_none_to_choose_or_to_count() -> None:
    run = trainer(replace(BEST, evaluate_every=2, patience=2, monitor="loss"))
    run.fit(lambda row: None)
    evaluated = [row for row in run.rows if "val/loss" in row]
    pretrain = [row["val/loss"] for row in evaluated if row["stage"] == "pretrain"]
    assert len(pretrain) - 1 - pretrain.index(min(pretrain)) == 2 and len(evaluated) < len(run.rows)
    assert run.take_best() in {row["epoch"] for row in evaluated}


class Killed(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize(
    ("method", "quantization"),
    [(DST(alpha=1e-2), FLOAT), (PDP(sparsity=0.5, epsilon="auto"), FLOAT), (Magnitude(sparsity=0.5), TRAINED), (NoPruning(), TRAINED)],
    ids=["dst", "pdp", "magnitude-budget", "budget"],
)
def test_a_killed_run_ends_bit_identical(method: PruningMethod, quantization: Quantization, every: int, tmp_path: Path) -> None:
    training = replace(BEST, evaluate_every=every, monitor="loss", rewind="every-round", save_weights_epoch=1)
    whole, path, ended = trainer(training, method, quantization), tmp_path / "checkpoint.pt", None
    whole.fit(lambda row: None)
    moments = random.Random(f"{method} {every}")
    for death in [*(moments.randint(1, 4 * STEPS) + every * STEPS for _ in range(6)), 0]:
        run, steps = trainer(training, method, quantization), itertools.count(1)
        if path.exists():
            run.load_state_dict(load_checkpoint(path))

        def step(steps: Any = steps, death: int = death) -> None:
            if next(steps) == death:
                raise Killed

        try:
            run.fit(lambda row, run=run: "ebops" in row and save_checkpoint(path, run.state_dict()), after_step=step)
            ended = run
            break
        except Killed:
            continue
    assert ended is not None
    assert [{**row, "seconds": 0} for row in ended.rows] == [{**row, "seconds": 0} for row in whole.rows]
    assert len(whole.rows) < len(whole.plan) and ended.take_best() == whole.take_best()
    for name, value in whole.model.state_dict().items():
        other = ended.model.state_dict()[name]
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name


def test_a_longer_run_has_the_best_of_its_own_last_stage_and_the_schedule_of_its_plan(tmp_path: Path) -> None:
    short = replace(BEST, fine_tuning_epochs=0, monitor="loss")
    first, path = trainer(short), tmp_path / "checkpoint.pt"
    first.fit(lambda row: None)
    assert first.selection.best is not None and first.selection.best["stage"] == "train"
    save_checkpoint(path, first.state_dict())
    longer = trainer(replace(short, fine_tuning_epochs=2))
    longer.load_state_dict(load_checkpoint(path))
    assert longer.selection.best is None
    longer.fit(lambda row: None)
    assert longer.take_best() in (19, 20)
    whole = trainer(replace(short, fine_tuning_epochs=2))
    whole.fit(lambda row: None)
    assert longer.rows[-1]["lr"] == pytest.approx(whole.rows[-1]["lr"], abs=1e-12)


SHORT = ["progress=quiet", "model.sizes=[null,8,null]", "training.pretraining_epochs=1", "training.epochs=2", "training.batch_size=256"]


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (["training.patience=2", "training.pretraining_epochs=0"], "training.patience = 2 has no effect without pretraining and fine-tuning epochs"),
        (["training.min_delta=0.1"], "training.min_delta = 0.1 has no effect without training.patience"),
        (["training.monitor=loss"], "training.monitor = loss has no effect without training.select=best or training.patience"),
        (["training.select=best"], "training.select=best may choose an epoch that is pruned less than the last"),
        (["training.select=best", "training.fine_tuning_epochs=1"], None),
        (["training.select=best", "pruning=magnitude", "training.monitor=loss"], None),
        (["training.select=best", "pruning=none"], None),
    ],
)
def test_settings_without_effect_are_said(fields: list[str], line: str | None, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    build(*SHORT, "training.fine_tuning_epochs=0", *fields, "dry_run=true").run(pquant.resume.Run(tmp_path, {}, ""))
    found = [message for message in caplog.messages if "training." in message and "fine_tuning_epochs = " not in message]
    assert (line is None and not found) or any(line in message for message in found if line)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patience": 0}, r"Training.patience must be in \[1, 1e\+06\], got 0"),
        ({"select": "bset"}, "Training.select must be one of 'last', 'best', got 'bset': did you mean 'best'"),
        ({"monitor": "los"}, "did you mean 'loss'"),
        ({"min_delta": -1.0}, r"Training.min_delta must be in \[0, inf\)"),
    ],
)
def test_wrong_values_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Training(**fields)
