"""The losses of distillation against formulas by hand, and what a teacher does and does not do to a step."""

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import pquant
from pquant.data import Splits
from pquant.distillation import NoDistillation, Teacher, feature_loss, soft_target_loss
from pquant.distillation.losses import Distiller, Recorder
from pquant.pruning import DST
from pquant.quantization import Quantization
from pquant.training import Training
from pquant.training.trainer import Trainer

from ..formats import EIGHT_BITS
from ..training.test_devices import OnOneDevice

LENGTHS = Training(pretraining_epochs=2, epochs=2, fine_tuning_epochs=2, batch_size=16, compile=False)


def data(classes: int | None = 3) -> Splits:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 6, generator=generator)
    y = x[:, :3].argmax(1) if classes else x[:, :2] + x[:, 2:4]
    return Splits(*[TensorDataset(x, y)] * 3, num_classes=classes)


def net(outputs: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, outputs))


def taught(
    section: Teacher | NoDistillation,
    splits: Splits | None = None,
    training: Training = LENGTHS,
    optimizer: Any = torch.optim.Adam,
    quantization: Quantization | None = EIGHT_BITS,
    device: str = "cpu",
) -> Trainer:
    """Return the trainer of a pruned student of 8 bits; its teacher has weights of its own."""
    splits = splits or data()
    torch.manual_seed(1)
    float_model, other = net(splits.num_outputs), net(splits.num_outputs)
    student = pquant.compress(float_model, DST(alpha=1e-3), quantization, splits.train[:4][0])
    distiller = section.distiller(student, float_model, splits, training, None)
    if isinstance(distiller, Distiller):
        distiller.take_baseline(other)
    constant = partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0)
    return Trainer(student, splits, training, partial(optimizer, lr=1e-2), constant, torch.device(device), 0, distiller)


def by_hand(student: list[list[float]], teacher: list[list[float]], temperature: float) -> float:
    total = 0.0
    for mine, target in zip(student, teacher, strict=True):
        p, q = ([math.exp(value / temperature) / sum(math.exp(other / temperature) for other in row) for value in row] for row in (target, mine))
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / len(student)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_soft_targets_are_the_divergence_by_hand(temperature: float) -> None:
    student, teacher = torch.randn(5, 4, dtype=torch.float64), 3 * torch.randn(5, 4, dtype=torch.float64)
    expected = by_hand(student.tolist(), teacher.tolist(), temperature)
    assert float(soft_target_loss(student, teacher, temperature)) == pytest.approx(expected, rel=1e-12)
    assert float(soft_target_loss(teacher, teacher, temperature)) == pytest.approx(0, abs=1e-12)


def test_the_gradient_of_soft_targets_is_that_of_the_paper() -> None:
    """Equation 2 of arXiv 1503.02531 times T^2: T (q - p) for each example; for high T about (z - v) / N with logits of mean 0, equation 4."""
    student, teacher = torch.randn(1, 4, dtype=torch.float64, requires_grad=True), torch.randn(1, 4, dtype=torch.float64)
    for temperature in (1.0, 3.0):
        (found,) = torch.autograd.grad(soft_target_loss(student, teacher, temperature), student)
        torch.testing.assert_close(found, temperature * ((student / temperature).softmax(1) - (teacher / temperature).softmax(1)))
    (hot,) = torch.autograd.grad(soft_target_loss(student, teacher, 1e4), student)
    difference = (student - student.mean()) - (teacher - teacher.mean())
    torch.testing.assert_close(hot, difference.detach() / 4, rtol=1e-2, atol=1e-4)


def test_features_are_mean_squared_errors_summed() -> None:
    ones, zeros = torch.ones(2, 3), torch.zeros(2, 3)
    assert float(feature_loss([ones, 3 * ones], [zeros, ones])) == 1 + 4
    assert float(feature_loss([torch.tensor([1.0, 2.0])], [torch.tensor([0.0, 4.0])])) == (1 + 4) / 2


def parts(run: Trainer) -> tuple[Tensor, ...]:
    """Return the losses of the first batch, the trainer in its first epoch."""
    x, y = run.splits.train[:16]
    run.model.train()
    run.distiller.set_stage(run.plan[0].stage)
    with run.distiller.attached(run.model):
        return run._losses(x, y)


@pytest.mark.parametrize("classes", [3, None])
def test_a_step_differentiates_the_weighted_sum(classes: int | None) -> None:
    section = Teacher(weight=0.3, temperature=2.0, features={"0": "0", "4": "4"}, feature_weight=0.7)
    run, again = taught(section, data(classes)), taught(section, data(classes))
    torch.manual_seed(3)
    losses = parts(run)
    total = run.distiller.total(losses)
    torch.manual_seed(3)
    seen: dict[str, Tensor] = {}
    for name in ("0", "4"):
        again.model.get_submodule(name).register_forward_hook(lambda module, args, output, name=name: seen.__setitem__(name, output))
    x, y = run.splits.train[:16]
    output, teacher = again.model.train()(x), run.distiller.teacher.module
    target = teacher(x)
    features = (seen["0"] - teacher[0](x)).square().mean() + (seen["4"] - target).square().mean()
    soft = (output - target).square().mean() if classes is None else by_hand(output.tolist(), target.tolist(), 2.0)
    task, penalty, distillation = losses
    torch.testing.assert_close(task, run.task.loss(output, y))
    torch.testing.assert_close(distillation, 0.3 * soft + 0.7 * features)
    torch.testing.assert_close(total, 0.7 * task + penalty + 0.3 * soft + 0.7 * features)


def test_without_a_teacher_a_step_is_what_it_was() -> None:
    run = taught(NoDistillation())
    rows: list[dict[str, Any]] = []
    run.fit(rows.append)
    assert len(parts(run)) == 2 and not [name for row in rows for name in row if "distillation" in name]


def test_the_loss_in_the_metrics_is_the_tasks_and_the_teachers_has_its_column() -> None:
    rows: list[dict[str, Any]] = []
    run = taught(Teacher(weight=1.0, stages=["train"]))
    run.fit(rows.append)
    assert [row["train/distillation"] > 0 for row in rows] == [row["stage"] == "train" for row in rows]
    assert rows[-1]["train/loss"] < rows[0]["train/loss"] and all(0 < row["train/loss"] < 5 for row in rows)


def test_a_teacher_stays_as_it_is_and_draws_nothing() -> None:
    run = taught(Teacher(features=["1"]))
    teacher = run.distiller.teacher.module
    before, random = copy.deepcopy(teacher.state_dict()), torch.get_rng_state()
    run.distiller.set_stage(run.plan[0].stage)
    teacher(run.splits.train[:16][0])
    assert torch.equal(torch.get_rng_state(), random)
    run.fit(lambda row: None)
    assert all(torch.equal(value, teacher.state_dict()[name]) for name, value in before.items())
    trained = {id(parameter) for group in run.optimizer.param_groups for parameter in group["params"]}
    assert not trained & {id(parameter) for parameter in teacher.parameters()}
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())
    assert not [name for name in run.state_dict()["state"]["model"] if "teacher" in name]


def test_no_hook_is_left_on_the_student_and_a_copy_records_nothing() -> None:
    run = taught(Teacher(features=["0"]))
    with run.distiller.attached(run.model):
        run.distiller.set_stage(run.plan[0].stage)
        copied = copy.deepcopy(run.model)
        copied.train()(run.splits.train[:4][0])
    (hook,) = copied[0]._forward_hooks.values()
    assert isinstance(hook, Recorder) and not hook.on and hook.output is None
    run.fit(lambda row: None)
    assert not run.model[0]._forward_hooks and run.distiller.student_features["0"].output is None


@pytest.mark.parametrize("on_nan", ["stop", "skip_step"])
def test_no_step_waits_for_the_device(on_nan: str, no_host_sync: Callable[[], AbstractContextManager[None]]) -> None:
    training = Training(pretraining_epochs=1, epochs=1, batch_size=16, compile=False, on_nan=on_nan)
    run = taught(Teacher(features=["0"]), training=training, optimizer=torch.optim.SGD)
    x, y = run.splits.train[:16]
    run.model.train()
    run.distiller.set_stage(run.plan[0].stage)
    with run.distiller.attached(run.model):
        run.step(x, y)
        with no_host_sync():
            *losses, _ = run.step(x, y)
    assert len(losses) == 3


def test_a_step_on_another_device_stays_there() -> None:
    run = taught(Teacher(features=["0"]), device="meta")
    run.model.train()
    run.distiller.set_stage(run.plan[0].stage)
    with run.distiller.attached(run.model), OnOneDevice():
        *losses, _ = run.step(torch.empty(16, 6, device="meta"), torch.empty(16, dtype=torch.int64, device="meta"))
    assert len(losses) == 3 and all(loss.is_meta for loss in losses)


def test_bf16_leaves_the_teacher_in_float32() -> None:
    run = taught(Teacher(weight=1.0), training=Training(pretraining_epochs=1, epochs=1, batch_size=16, compile=False, precision="bf16"))
    seen: list[torch.dtype] = []
    run.distiller.teacher.module.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    assert parts(run)[2].dtype is torch.float32 and seen == [torch.float32]


def test_a_diverged_teacher_is_named() -> None:
    run = taught(Teacher())
    run.distiller.teacher.module[4].bias.fill_(torch.inf)
    with pytest.raises(pquant.errors.DivergedError, match="the distillation loss is not finite in step 1 of 4 of epoch 1"):
        run.fit(lambda row: None)


@pytest.mark.slow
@pytest.mark.parametrize("stages", [["pretrain", "train", "finetune"], ["train"]])
def test_compiled_steps_give_the_losses_of_eager_ones(stages: list[str]) -> None:
    """Without quantization and Adam: a value that rounds the other way, or the sign of a gradient that is 0, makes a run another one."""
    found = []
    for compiled in (True, False):
        torch._dynamo.reset()
        rows: list[dict[str, Any]] = []
        training = Training(pretraining_epochs=2, epochs=2, fine_tuning_epochs=2, batch_size=16, compile=compiled)
        run = taught(Teacher(features=["0", "4"], stages=stages), training=training, optimizer=torch.optim.SGD, quantization=None)
        for dropout in (module for module in run.model.modules() if isinstance(module, nn.Dropout)):
            dropout.p = 0.0
        run.fit(rows.append)
        assert (run.losses._graph is not None) is compiled
        found.append(rows)
    for one, two in zip(*found, strict=True):
        for name in ("train/loss", "train/penalty", "train/distillation", "val/loss"):
            assert one[name] == pytest.approx(two[name], rel=1e-4, abs=1e-6), name


def test_a_step_with_a_teacher_compiles_into_one_graph() -> None:
    torch._dynamo.reset()
    run = taught(Teacher(features=["0"]))
    x, y = run.splits.train[:16]
    run.model.train()
    run.distiller.set_stage(run.plan[0].stage)
    with run.distiller.attached(run.model):
        explained = torch._dynamo.explain(run._losses)(x, y)
    assert explained.graph_count == 1 and explained.graph_break_count == 0
