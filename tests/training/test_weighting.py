"""Weighted examples count as that many equal ones: in losses, metrics, training steps, distillation and Fisher information."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import pquant
from pquant.data import Splits
from pquant.data.splitting import with_weights
from pquant.distillation.losses import feature_loss, soft_target_loss
from pquant.errors import ConfigError
from pquant.fitcompress import fisher
from pquant.pruning import DST
from pquant.quantization import Quantization
from pquant.training import Training
from pquant.training.checkpoint import load_checkpoint, save_checkpoint
from pquant.training.task import Classification, Regression, Task
from pquant.training.trainer import DivergedError, Trainer

from ..test_config import build

COUNTS = torch.tensor([1, 4, 2, 0, 3])
WEIGHT = COUNTS / COUNTS.float().mean()


def batch(classes: int | None) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    output = torch.randn(5, 3, generator=generator)
    return output, torch.randint(0, 3, (5,), generator=generator) if classes else torch.randn(5, 3, generator=generator)


@pytest.mark.parametrize(("task", "classes"), [(Classification(), 3), (Regression(), None)])
def test_loss_and_metric_are_those_of_repeated_examples(task: Task, classes: int | None) -> None:
    output, target = batch(classes)
    repeated = [tensor.repeat_interleave(COUNTS, 0) for tensor in (output, target)]
    torch.testing.assert_close(task.loss(output, target, WEIGHT), task.loss(*repeated))
    score = task.score(output, target, WEIGHT) / WEIGHT.sum()
    torch.testing.assert_close(score, task.score(*repeated) / len(repeated[0]))


def test_the_losses_of_a_teacher_are_those_of_repeated_examples() -> None:
    student, teacher = batch(None)
    again = [tensor.repeat_interleave(COUNTS, 0) for tensor in (student, teacher)]
    torch.testing.assert_close(soft_target_loss(student, teacher, 2.0, WEIGHT), soft_target_loss(*again, 2.0))
    images = [tensor.reshape(5, 3, 1).expand(5, 3, 2) for tensor in (student, teacher)]
    torch.testing.assert_close(feature_loss(images[:1], images[1:], WEIGHT), feature_loss(again[:1], again[1:]))


def test_fisher_information_is_that_of_repeated_examples() -> None:
    torch.manual_seed(0)
    model = pquant.compress(
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), None, Quantization(enable_quantization=False), torch.zeros(1, 3)
    )
    x, y = torch.randn(5, 3), torch.randint(0, 3, (5,))
    task = Classification()
    weighted = fisher(model, [(x, y, WEIGHT)], task.loss)
    repeated = fisher(model, [(x.repeat_interleave(COUNTS, 0), y.repeat_interleave(COUNTS, 0))], task.loss)
    for name, values in repeated.weights.items():
        torch.testing.assert_close(weighted.weights[name], values)
    assert weighted.inputs == pytest.approx(repeated.inputs)


def splits(counts: Tensor, classes: int | None = 3) -> tuple[Splits, Splits]:
    """Return splits whose examples have weights, and the same with repeated examples."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(len(counts), 4, generator=generator)
    y = x[:, :3].argmax(1) if classes else x[:, :1] * 2
    part = TensorDataset(x, y)
    weighted = with_weights(Splits(part, part, part, classes), [counts.double().numpy()] * 3)
    repeated = TensorDataset(*(tensor.repeat_interleave(counts, 0) for tensor in part.tensors))
    return weighted, Splits(repeated, repeated, repeated, classes)


def trainer(data: Splits, training: Training) -> Trainer:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, data.num_outputs))
    model = pquant.compress(net, DST(alpha=1e-2), Quantization(enable_quantization=False), torch.zeros(2, 4))
    constant = partial(torch.optim.lr_scheduler.ConstantLR, factor=1)
    return Trainer(model, data, training, partial(torch.optim.SGD, lr=0.1), constant, torch.device("cpu"), seed=0)


TRAINING = Training(pretraining_epochs=1, epochs=2, fine_tuning_epochs=1, batch_size=512)


@pytest.mark.parametrize("classes", [3, None])
def test_training_with_weights_is_training_with_repeated_examples(classes: int | None) -> None:
    weighted, repeated = (trainer(data, TRAINING) for data in splits(torch.arange(40) % 4 + 1, classes))
    for run in (weighted, repeated):
        run.fit(lambda row: None)
    for name, value in repeated.model.named_parameters():
        torch.testing.assert_close(dict(weighted.model.named_parameters())[name], value, rtol=1e-4, atol=1e-5)
    for row, other in zip(weighted.rows, repeated.rows, strict=True):
        assert {key: row[key] for key in row if "/" in key} == pytest.approx({key: other[key] for key in row if "/" in key}, rel=1e-4)
    assert weighted.evaluate("test", "test") == pytest.approx(repeated.evaluate("test", "test"), rel=1e-4)


def test_steps_that_are_skipped_or_not_finite_take_weights_too() -> None:
    data, _ = splits(torch.arange(40) % 4 + 1)
    x, *others = data.train.tensors
    data = replace(data, train=TensorDataset(torch.where(torch.arange(40)[:, None] == 3, torch.nan, x), *others))
    skipping = trainer(data, replace(TRAINING, batch_size=8, on_nan="skip_step"))
    skipping.fit(lambda row: None)
    assert all(torch.isfinite(value).all() for value in skipping.model.parameters())
    with pytest.raises(DivergedError, match="the data are not finite in step"):
        trainer(data, replace(TRAINING, batch_size=8)).fit(lambda row: None)


def test_a_resumed_run_with_weights_is_bit_identical(tmp_path: Path) -> None:
    training = replace(TRAINING, batch_size=16)
    whole, first, second = (trainer(splits(torch.arange(60) % 5)[0], training) for _ in range(3))
    whole.fit(lambda row: None)

    def die(row: dict) -> None:
        save_checkpoint(tmp_path / "checkpoint.pt", first.state_dict())
        if row["epoch"] == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        first.fit(die)
    second.load_state_dict(load_checkpoint(tmp_path / "checkpoint.pt"))
    second.fit(lambda row: None)
    assert [{**row, "seconds": 0} for row in second.rows] == [{**row, "seconds": 0} for row in whole.rows]
    assert all(torch.equal(value, second.model.state_dict()[name]) for name, value in whole.model.state_dict().items() if torch.is_tensor(value))


SMALL = ["progress=quiet", "training.pretraining_epochs=1", "training.epochs=1", "training.fine_tuning_epochs=0", "model.sizes=[null,8,null]"]


def run(tmp_path: Path, *overrides: str) -> dict:
    """Run on a table whose heavy half has labels by ``a`` and whose light half has random ones."""
    random = np.random.default_rng(0)
    a, b, heavy = random.normal(size=400), random.normal(size=400), np.arange(400) % 2 == 0
    y = np.where(heavy, a > 0, random.random(400) > 0.5)
    pd.DataFrame({"a": a, "b": b, "y": y, "w": np.where(heavy, 1e3, 1e-3)}).to_csv(tmp_path / "a.csv", index=False)
    folder = tmp_path / "run"
    folder.mkdir(exist_ok=True)
    experiment = build("data=table", f"data.path={tmp_path / 'a.csv'}", *SMALL, *overrides)
    return experiment.run(pquant.resume.Run(folder, {}, ""))


def test_a_run_fits_and_counts_what_has_weight(tmp_path: Path) -> None:
    long = ["training.epochs=60", "pruning=none", "data.features=[a,b]", "optimizer.lr=0.01"]
    weighted, plain = run(tmp_path, *long, "data.weight=w"), run(tmp_path, *long)
    assert weighted["test/accuracy"] > 0.9 and plain["test/accuracy"] < 0.85


def test_a_run_with_weights_has_a_teacher_a_baseline_and_a_search_of_bits(tmp_path: Path) -> None:
    taught = run(tmp_path, "data.weight=w", "distillation=teacher", "distillation.features=[layers.0]", "training.baseline=true")
    assert 0 <= taught["float/accuracy"] <= 1 and taught["test/accuracy"] >= 0
    searched = run(tmp_path, "data.weight=w", "fitcompress=on", "fitcompress.compression_goal=0.3", "pruning=none")
    assert searched["weight_bits"] < 32


def test_features_of_a_teacher_must_be_by_example(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", x=random.normal(size=(60, 4, 3)), y=np.arange(60) % 2, w=np.ones(60))
    net = "{_target_: torch.nn.Sequential, _args_: [{_target_: torch.nn.Flatten, start_dim: 0, end_dim: 1}, {_target_: torch.nn.Linear, "
    net += "in_features: 3, out_features: 2}, {_target_: torch.nn.Unflatten, dim: 0, unflattened_size: [-1, 4]}, {_target_: torch.nn.Flatten}, "
    net += "{_target_: torch.nn.Linear, in_features: 8, out_features: 2}]}"
    fields = [f"data.path={tmp_path / 'a.npz'}", "data=arrays", "distillation=teacher", "distillation.features=['1']", "~model", f"+model={net}"]
    (tmp_path / "run").mkdir()
    experiment = build(*SMALL[:-1], *fields, "data.weight=w", "pruning=none", "quantization=none")
    with pytest.raises(ConfigError, match=r"layer '1' of the teacher gives \(8, 2\) for 2 examples, whose first axis must be the examples"):
        experiment.run(pquant.resume.Run(tmp_path / "run", {}, ""))


@pytest.mark.parametrize("source", ["digits", "mnist", "cifar10", "jets_simulated"])
def test_a_source_without_columns_of_its_own_has_no_weights(source: str) -> None:
    with pytest.raises(Exception, match="weight"):
        build(f"data={source}", "data.weight=w")
