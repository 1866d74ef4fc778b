"""Numbers that are not finite stop a run and say where they began, or cost it the step; sets and layers at the edge are trained."""

import copy
import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ConstantLR
from torch.utils.data import Dataset, TensorDataset

import pquant
from pquant.data import Splits
from pquant.errors import ConfigError, DivergedError
from pquant.pruning import CS, DST, MDMM, PDP, ActivationPruning, AutoSparse, NoPruning, PruningMethod, Wanda
from pquant.quantization import Quantization
from pquant.training import Training
from pquant.training.numerics import all_finite
from pquant.training.trainer import Trainer

EXACT = Quantization(enable_quantization=False)
EIGHT = Quantization(default_data_integer_bits=3, default_data_fractional_bits=4, default_weight_fractional_bits=7)


def splits(count: int = 64, classes: int = 3) -> Splits:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(count) % classes
    x = torch.randn(count, 6, generator=generator) + 2 * torch.eye(classes, 6)[y]
    part = TensorDataset(x, y)
    return Splits(part, TensorDataset(x[:16].clone(), y[:16]), TensorDataset(x[:16].clone(), y[:16]), classes)


def make(data: Splits, method: PruningMethod | None = None, optimizer: Any = None, quantization: Quantization = EXACT, **settings: Any) -> Trainer:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    model = pquant.compress(net, method or NoPruning(), quantization, torch.zeros(2, 6))
    training = Training(**{"pretraining_epochs": 1, "epochs": 2, "batch_size": 16, **settings})
    return Trainer(model, data, training, optimizer or partial(Adam, lr=1e-2), partial(ConstantLR, factor=1.0), torch.device("cpu"), seed=0)


def step_of(run: Trainer, example: int, epoch: int) -> int:
    """Return in which step of an epoch an example comes, as the order's generator has it."""
    order = torch.Generator().manual_seed(0)
    for _ in range(epoch):
        rows = torch.randperm(len(run.splits.train), generator=order)
    return int((rows == example).nonzero()) // run.training.batch_size + 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_bad_data_are_named_with_step_and_epoch(value: float) -> None:
    run = make(splits())
    run.splits.train.tensors[0][37, 2] = value
    with pytest.raises(DivergedError, match=rf"the data are not finite in step {step_of(run, 37, 1)} of 4 of epoch 1 \(pretrain\)"):
        run.fit(lambda row: None)
    assert run.rows == []


def test_saturated_infinity_in_streamed_data_is_seen_though_no_loss_tells_it() -> None:
    data = splits()
    data.train.tensors[0][5, 0] = math.inf

    class Streamed(Dataset):
        def __len__(self) -> int:
            return 64

        def __getitem__(self, index: int) -> tuple[Tensor, ...]:
            return data.train[index]

    run = make(Splits(Streamed(), data.validation, data.test, 3), quantization=EIGHT)
    with pytest.raises(DivergedError, match="the data are not finite in step . of 4 of epoch 1"):
        run.fit(lambda row: None)


class Fails(nn.Module):
    """Gives or back-propagates a wrong value once, in a step of its own."""

    def __init__(self, at: int, backward: bool) -> None:
        super().__init__()
        self.backward = backward
        self.register_buffer("left", torch.tensor(at))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.left -= 1
        wrong = torch.where(self.left == 0, math.inf, 1.0) if self.training else torch.ones(())
        if not self.backward:
            return x + (x * wrong - x * wrong).detach()
        y = x * 1
        if y.requires_grad:
            y.register_hook(lambda grad: grad * wrong)
        return y


@pytest.mark.parametrize(
    ("backward", "said"),
    [(False, "the output of layer '2' is not finite in step 3 of 4 of epoch 2"), (True, "the gradient of '1.bias' is not finite in step 3 of 4 of")],
)
def test_a_layer_is_named(backward: bool, said: str) -> None:
    run = make(splits())
    run.model[2] = Fails(7, backward)
    seen: list[int] = []
    with pytest.raises(DivergedError, match=said):
        run.fit(lambda row: seen.append(row["epoch"]))
    assert seen == [1]


def test_momenta_that_overflow_are_seen_though_the_weights_stand_still() -> None:
    run = make(splits())
    run.task = type(
        "Steep", (), {**{k: getattr(run.task, k) for k in ("score", "finish", "metric")}, "loss": lambda self, o, y: 1e25 * o.square().mean()}
    )()
    with pytest.raises(DivergedError, match="'.*' or its momentum is not finite after the update in step 1"):
        run.fit(lambda row: None)


def test_a_loss_that_explodes_is_named_before_it_is_nan() -> None:
    run = make(splits(), optimizer=partial(SGD, lr=1e30))
    with pytest.raises(DivergedError, match=r"in step \d of 4 of epoch 1"):
        run.fit(lambda row: None)


@pytest.mark.parametrize("optimizer", [partial(Adam, lr=1e-2), partial(SGD, lr=1e-2, momentum=0.9)], ids=["adam", "sgd"])
def test_a_skipped_step_leaves_nothing_behind(optimizer: Any) -> None:
    """Oracle: the same run on the same batches but the bad one, made by hand."""
    data = splits()
    run, other = make(data, optimizer=optimizer, on_nan="skip_step"), make(data, optimizer=optimizer)
    for number, (x, y) in enumerate(zip(*(tensor.split(16) for tensor in data.train.tensors), strict=True)):
        kept = run.step(torch.full_like(x, math.nan) if number in (0, 2) else x, y)[2]
        assert bool(kept) is (number not in (0, 2))
        if number not in (0, 2):
            other.step(x, y)
    assert all(torch.equal(value, other.model.state_dict()[name]) for name, value in run.model.state_dict().items() if isinstance(value, Tensor))
    memories = [[value for state in one.optimizer.state.values() for value in state.values()] for one in (run, other)]
    assert len(memories[0]) == len(memories[1]) and all(torch.equal(*pair) for pair in zip(*memories, strict=True))


@pytest.mark.parametrize(("epochs", "skipped"), [(1, [1]), (2, [1]), (2, [0, 1, 2])])
@pytest.mark.parametrize(
    "method",
    [Wanda(sparsity=0.5, t_delta=2, t_start_collecting_batch=0), ActivationPruning(threshold=0.6, t_delta=2, t_start_collecting_batch=0)],
    ids=["wanda", "activation"],
)
def test_a_window_that_closes_in_a_skipped_step_prunes_later(method: PruningMethod, epochs: int, skipped: list[int]) -> None:
    data = splits()
    run = make(data, method, on_nan="skip_step")
    pquant.set_stage(run.model, pquant.Stage.TRAIN, pquant.Horizon(epochs, 4))
    for epoch in range(epochs):
        run.model.train()
        for number, (x, y) in enumerate(zip(*(tensor.split(16) for tensor in data.train.tensors), strict=True)):
            run.step(torch.full_like(x, math.nan) if epoch == 0 and number in skipped else x, y)
        pquant.on_epoch_end(run.model)
    before = pquant.sparsity(run.model)
    pquant.set_stage(run.model, pquant.Stage.FINETUNE)
    after = pquant.sparsity(run.model)
    assert 0.05 < after < 0.6
    assert before == (after if epochs == 2 else 0)


def test_skipped_steps_are_told_and_a_run_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    data = splits()
    data.train.tensors[0][11] = math.nan
    run = make(data, on_nan="skip_step")
    with caplog.at_level(logging.WARNING):
        run.fit(lambda row: None)
    assert caplog.messages == [f"epoch {epoch}: 1 of 4 steps had values that are not finite and were skipped" for epoch in (1, 2, 3)]
    assert all(math.isfinite(row["train/loss"]) and 0 < row["train/loss"] < 3 for row in run.rows) and run.rows[-1]["val/accuracy"] > 0.5


def test_a_run_without_one_good_step_stops() -> None:
    data = splits()
    data.train.tensors[0][:] = math.nan
    with pytest.raises(DivergedError, match="the data are not finite in step 1 of 4 of epoch 1"):
        make(data, on_nan="skip_step").fit(lambda row: None)


def test_skipping_changes_nothing_where_all_is_finite() -> None:
    runs = [make(splits(), DST(alpha=1e-3), quantization=EIGHT, on_nan=on_nan) for on_nan in ("stop", "skip_step")]
    for run in runs:
        run.fit(lambda row: None)
    stop, skip = ([{**row, "seconds": 0} for row in run.rows] for run in runs)
    assert stop == skip


@pytest.mark.parametrize("on_nan", ["stop", "skip_step"])
def test_no_step_waits_for_the_device(on_nan: str, no_host_sync: Callable[[], AbstractContextManager[None]]) -> None:
    run = make(splits(), on_nan=on_nan)
    run.model.train()
    x, y = (tensor[:16] for tensor in run.splits.train.tensors)
    run.step(x, y)
    run.optimizer.step = partial(lambda: None)  # Adam reads its own count of steps, which lies on the host
    with no_host_sync():
        run.step(x, y)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_all_finite(bad: float) -> None:
    values = [torch.ones(3), torch.tensor([[1e38, -1e38]])]
    assert bool(all_finite(values))
    assert not bool(all_finite([*values, torch.tensor([0.0, bad])]))


METHODS = [
    DST(alpha=1.0, max_pruning_pct=1.0),
    Wanda(sparsity=0.99, t_start_collecting_batch=1, t_delta=1),
    PDP(sparsity=0.99),
    CS(final_temp=1000),
    AutoSparse(),
    ActivationPruning(threshold=0.99, t_start_collecting_batch=1, t_delta=1),
    MDMM(),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_a_network_without_weights_is_trained_finalized_and_measured(method: PruningMethod) -> None:
    run = make(splits(), method, quantization=EIGHT, fine_tuning_epochs=1)

    def empty(row: dict) -> None:
        with torch.no_grad():
            for layer in run.pruned:
                layer.weight.zero_()

    run.fit(empty)
    empty({})
    final = pquant.finalize(run.model)
    assert run.rows[-1]["epoch"] == 4 and all(math.isfinite(row[key]) for row in run.rows for key in ("train/loss", "val/loss", "sparsity", "ebops"))
    assert (pquant.sparsity(final), pquant.ebops(final)) == (1.0, pytest.approx(pquant.ebops(copy.deepcopy(final))))
    assert bool(torch.isfinite(final(torch.randn(5, 6))).all())


@pytest.mark.parametrize(("count", "size", "steps"), [(33, 16, 2), (34, 16, 3), (17, 16, 1), (2, 16, 1), (3, 2, 1)])
def test_a_lonely_last_example_is_left_out_before_a_batch_norm(count: int, size: int, steps: int) -> None:
    run = make(splits(count), batch_size=size)
    run.fit(lambda row: None)
    assert len(run.loader) == steps and all(math.isfinite(row["train/loss"]) for row in run.rows)


@pytest.mark.parametrize(("count", "size"), [(64, 1), (1, 16)])
def test_batches_of_one_are_refused_before_a_batch_norm(count: int, size: int) -> None:
    with pytest.raises(ConfigError, match="batch norm needs 2 examples a batch"):
        make(splits(count), batch_size=size)


def test_no_example_is_left_out_without_a_batch_norm() -> None:
    run = make(splits())
    plain = Trainer(nn.Linear(6, 3), splits(33), run.training, partial(SGD, lr=0.1), partial(ConstantLR, factor=1.0), torch.device("cpu"), seed=0)
    assert len(plain.loader) == 3
    plain.fit(lambda row: None)


def test_constant_features_and_absent_classes_are_trained() -> None:
    data = splits(classes=3)
    data.train.tensors[0][:, 3] = 5.0
    data.train.tensors[1][data.train.tensors[1] == 2] = 0
    run = make(data, DST(alpha=1e-3), quantization=EIGHT)
    run.fit(lambda row: None)
    assert all(math.isfinite(value) for row in run.rows for value in row.values() if isinstance(value, float))
