"""The plan of epochs, rewinding, and going on from a checkpoint."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import pquant
from pquant.data import Splits
from pquant.pruning import DST, PDP, NoPruning, PruningMethod, Wanda
from pquant.quantization import Quantization
from pquant.training import Stage, Training
from pquant.training.checkpoint import cloned, load_checkpoint, save_checkpoint
from pquant.training.saved_weights import SavedWeights
from pquant.training.trainer import DivergedError, Trainer, plan

from ..formats import EIGHT_BITS

FIXED = replace(EIGHT_BITS, quantize_output=False)
TRAINED = replace(
    FIXED,
    use_hgq=True,
    hgq_beta_schedule=[[0, 1e-6], [4, 1e-3]],
    hgq_gamma=1e-6,
    granularity="per_weight",
    data_granularity="per_channel",
)
TRAINING = Training(pretraining_epochs=1, epochs=3, rounds=2, fine_tuning_epochs=2, batch_size=16)


def blobs(seed: int = 0) -> Splits:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (96,), generator=generator)
    x = torch.randn(96, 6, generator=generator) + 2 * torch.eye(3, 6)[y]
    parts = [TensorDataset(x[part], y[part]) for part in (slice(0, 64), slice(64, 80), slice(80, 96))]
    return Splits(*parts, num_classes=3)


def trainer(pruning: PruningMethod, quantization: Quantization, training: Training = TRAINING, lr: float = 1e-2) -> Trainer:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3))
    model = pquant.compress(net, pruning, quantization, torch.zeros(2, 6))
    cosine = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=training.total_epochs)
    return Trainer(model, blobs(), training, partial(torch.optim.Adam, lr=lr), cosine, torch.device("cpu"), seed=0)


def test_the_plan_counts_every_epoch_once() -> None:
    epochs = plan(TRAINING)
    assert len(epochs) == TRAINING.total_epochs == 9
    assert [epoch.number for epoch in epochs] == list(range(1, 10))
    assert [epoch.stage for epoch in epochs] == [Stage.PRETRAIN] + [Stage.TRAIN] * 6 + [Stage.FINETUNE] * 2
    assert [epoch.number for epoch in epochs if epoch.ends_round] == [1, 4, 7, 9]


def test_stages_are_entered_in_order_and_rows_tell_them() -> None:
    run = trainer(DST(alpha=1e-2), FIXED)
    stages: list[Stage] = []
    run.fit(lambda row: stages.append(run.model[0].pruner.stage))
    assert stages == [epoch.stage for epoch in run.plan]
    assert [row["stage"] for row in run.rows] == [stage.value for stage in stages]
    assert all({"train/loss", "train/penalty", "val/loss", "val/accuracy", "sparsity", "ebops", "lr", "seconds"} <= row.keys() for row in run.rows)
    assert [row["train/penalty"] > 0 for row in run.rows] == [stage is Stage.TRAIN for stage in stages]


METHODS = [NoPruning(), DST(alpha=1e-2), Wanda(sparsity=0.5, t_start_collecting_batch=3, t_delta=5)]


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("quantization", [FIXED, TRAINED], ids=["fixed", "hgq"])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_a_run_resumed_at_any_epoch_ends_bit_identical(method: PruningMethod, quantization: Quantization, every: int, tmp_path: Path) -> None:
    saved: list[Path] = []
    training = replace(TRAINING, evaluate_every=every)
    whole = trainer(method, quantization, training)

    def keep(row: dict) -> None:
        saved.append(tmp_path / f"{row['epoch']}.pt")
        save_checkpoint(saved[-1], whole.state_dict())

    whole.fit(keep)
    for path in saved[:-1]:
        resumed = trainer(method, quantization, training)
        resumed.load_state_dict(load_checkpoint(path))
        resumed.fit(lambda row: None)
        for name, value in whole.model.state_dict().items():
            other = resumed.model.state_dict()[name]
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, (path.stem, name)
        timeless = [[{**row, "seconds": 0} for row in run.rows] for run in (whole, resumed)]
        assert timeless[0] == timeless[1]


@pytest.mark.parametrize(("rewind", "expected"), [("never", 0), ("every-round", 2), ("post-training-stage", 1)])
def test_rewinding_puts_the_saved_weights_back_and_keeps_the_mask(rewind: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(pretraining_epochs=0, epochs=3, rounds=2, fine_tuning_epochs=1, batch_size=16, rewind=rewind, save_weights_epoch=1)
    run = trainer(Wanda(sparsity=0.5, t_start_collecting_batch=1, t_delta=2), FIXED, training)
    seen: list[tuple] = []
    original = SavedWeights.restore

    def watched(self: SavedWeights, optimizer: torch.optim.Optimizer) -> None:
        mask = self.model[0].pruner.mask.clone()
        original(self, optimizer)
        weights = {name: value.clone() for name, value in self.current().items()}
        seen.append((weights, torch.equal(mask, self.model[0].pruner.mask), len(optimizer.state)))

    monkeypatch.setattr(SavedWeights, "restore", watched)
    run.fit(lambda row: None)
    assert len(seen) == expected
    for weights, mask_kept, momenta in seen:
        assert mask_kept and momenta == 0
        assert weights.keys() == run.saved_weights.tensors.keys()
        assert all(torch.equal(weights[name], run.saved_weights.tensors[name]) for name in weights)
        assert {"0.bias", "1.running_mean", "4.weight"} <= weights.keys()


def test_weights_are_saved_at_the_start_of_the_named_epoch() -> None:
    training = Training(pretraining_epochs=0, epochs=3, fine_tuning_epochs=1, batch_size=16, rewind="post-training-stage", save_weights_epoch=0)
    run = trainer(NoPruning(), FIXED, training)
    initial = run.model[0].weight.detach().clone()
    run.fit(lambda row: None)
    assert torch.equal(run.saved_weights.tensors["0.weight"], initial)


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_epoch() -> None:
    run = trainer(NoPruning(), FIXED)
    run.splits.train.tensors[0][3] = torch.nan
    with pytest.raises(DivergedError, match="epoch 1"):
        run.fit(lambda row: None)


def test_a_run_that_diverges_between_evaluations_says_where_it_began() -> None:
    def schedule(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1e38 if epoch == 6 else 1.0)

    said = []
    for every in (1, 10):
        run = trainer(DST(alpha=1e-2), TRAINED, replace(TRAINING, rounds=1, epochs=9, evaluate_every=every))
        run.scheduler = schedule(run.optimizer)
        with pytest.raises(DivergedError) as caught:
            run.fit(lambda row: None)
        said.append(str(caught.value))
    assert said[0] == said[1] and "of epoch 7 (train)" in said[0] and "in step 2 of 4" in said[0]


def test_the_state_is_copied_and_given_out_where_the_model_is_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[int] = []
    monkeypatch.setattr("pquant.training.trainer.cloned", lambda state: copies.append(run.position) or cloned(state))
    run = trainer(NoPruning(), FIXED, replace(TRAINING, rounds=1, epochs=9, evaluate_every=4))
    given: list[int] = []
    run.fit(lambda row: given.append(run.state_dict()["position"]))
    assert given == [1, 1, 1, 4, 4, 4, 4, 8, 8, 10, 10, 12]
    assert copies == [0, 1, 1, 4, 8, 10, 10, 12], "and where a stage begins"
    assert json.loads(run.state_dict()["rows"]) == run.rows


def test_a_plain_model_trains_too() -> None:
    torch.manual_seed(0)
    constant = partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0)
    optimizer = partial(torch.optim.Adam, lr=1e-2)
    run = Trainer(nn.Linear(6, 3), blobs(), Training(pretraining_epochs=20, epochs=0, batch_size=16), optimizer, constant, torch.device("cpu"), 0)
    run.fit(lambda row: None)
    assert run.evaluate("test", "test")["test/accuracy"] > 0.7


@pytest.mark.slow
def test_compiled_training_ends_where_plain_training_does() -> None:
    rows = []
    for compiles in (False, True):
        run = trainer(DST(alpha=1e-2), FIXED, replace(TRAINING, compile=compiles))
        run.model[3].p = 0.0  # a compiled dropout draws other numbers
        run.fit(lambda row: None)
        rows.append(run.rows)
    for plain, compiled in zip(*rows, strict=True):
        assert compiled["train/loss"] == pytest.approx(plain["train/loss"], rel=0.05)


@pytest.mark.parametrize("section", [FIXED, TRAINED], ids=["fixed", "trained"])
def test_in_bf16_layers_multiply_in_bf16_and_quantizers_stay_exact(section: Quantization) -> None:
    plain, reduced = (trainer(DST(alpha=1e-2), section, replace(TRAINING, precision=precision)) for precision in ("fp32", "bf16"))
    seen: set[tuple[str, torch.dtype]] = set()
    layer = reduced.model[4]
    layer.input_quantizer.register_forward_hook(lambda _, given, y: seen.add(("quantizer", y.dtype)))
    layer.register_forward_hook(lambda module, given, y: seen.add(("training" if module.training else "evaluation", y.dtype)))
    for run in (plain, reduced):
        run.fit(lambda row: None)
    assert seen - {("quantizer", torch.float32)} == {("training", torch.bfloat16), ("evaluation", torch.float32)}
    losses = [[row["train/loss"] for row in run.rows] for run in (plain, reduced)]
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.1)


def test_a_method_s_border_is_that_of_the_weights_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(PDP(sparsity=0.5, epsilon=1.0), FIXED, replace(TRAINING, rewind="every-round", save_weights_epoch=1))
    borders: list[tuple[torch.Tensor, torch.Tensor]] = []
    step = run.step

    def watched(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        pruner, weight = run.model[0].pruner, run.model[0].weight
        if pruner.stage is Stage.TRAIN:
            kept = pruner.border.clone()
            pruner.measure(weight)
            borders.append((kept, pruner.border.clone()))
        return step(x, y)

    monkeypatch.setattr(run, "step", watched)
    run.fit(lambda row: None)
    assert len(borders) == 2 * 3 * 4 and all(torch.equal(kept, measured) for kept, measured in borders)


@pytest.mark.parametrize("rewind", ["never", "every-round", "post-training-stage"])
def test_rewinding_does_not_put_the_regularization_weight_back_to_its_start(rewind: str) -> None:
    # Relies on train/penalty being beta times the EBOPs of the bit widths, which stand still here, nothing being pruned: rows differ by beta alone.
    standing = replace(FIXED, use_hgq=True, hgq_lr=1e-12, hgq_beta_schedule=[[0, 1e-6], [3, 1e-3]])
    lengths = Training(pretraining_epochs=0, epochs=2, rounds=2, fine_tuning_epochs=1, batch_size=32, rewind=rewind, save_weights_epoch=0)
    run = trainer(NoPruning(), standing, lengths)
    run.fit(lambda row: None)
    assert [row["stage"] for row in run.rows] == ["train"] * 4 + ["finetune"]
    paid = [row["train/penalty"] for row in run.rows]
    assert [value / paid[0] for value in paid] == pytest.approx([1, 10, 100, 1000, 1000], rel=1e-3)


def test_a_schedule_on_a_plateau_follows_the_validation_loss() -> None:
    schedule = partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0, threshold=10.0, threshold_mode="abs", factor=0.5)
    lengths = Training(pretraining_epochs=0, epochs=4, batch_size=32)
    found = Trainer(nn.Linear(6, 3), blobs(), lengths, partial(torch.optim.SGD, lr=0.1), schedule, torch.device("cpu"), seed=0)
    found.fit(lambda row: None)
    assert [row["lr"] for row in found.rows] == [0.1, 0.1, 0.05, 0.025]


EVALUATED = {"val/loss", "val/accuracy", "sparsity", "ebops"}


def test_epochs_between_evaluations_have_their_training_loss_alone() -> None:
    run = trainer(DST(alpha=1e-2), TRAINED, replace(TRAINING, evaluate_every=4))
    run.fit(lambda row: None)
    every = trainer(DST(alpha=1e-2), TRAINED)
    every.fit(lambda row: None)
    found = [row["epoch"] for row in run.rows if EVALUATED <= row.keys()]
    assert found == [1, 4, 7, 8, 9], "every fourth epoch, and the last of pretraining, training and fine-tuning"
    assert all(not EVALUATED & row.keys() for row in run.rows if row["epoch"] not in found)
    for row, other in zip(run.rows, every.rows, strict=True):
        assert {**row, "seconds": 0} == {name: value for name, value in {**other, "seconds": 0}.items() if name in row}
    assert all(torch.equal(value, every.model.state_dict()[name]) for name, value in run.model.state_dict().items() if torch.is_tensor(value))


def test_a_schedule_on_a_plateau_rests_between_evaluations() -> None:
    schedule = partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0, threshold=10.0, threshold_mode="abs", factor=0.5)
    lengths = Training(pretraining_epochs=0, epochs=7, batch_size=32, evaluate_every=2)
    found = Trainer(nn.Linear(6, 3), blobs(), lengths, partial(torch.optim.SGD, lr=0.1), schedule, torch.device("cpu"), seed=0)
    found.fit(lambda row: None)
    assert [row["lr"] for row in found.rows] == [0.1, 0.1, 0.1, 0.1, 0.05, 0.05, 0.025]


def test_the_rows_of_a_budget_have_target_and_beta_in_force() -> None:
    section = replace(TRAINED, hgq_beta_schedule=[], target_ebops=1000)
    run = trainer(DST(alpha=1e-2), section)
    run.fit(lambda row: None)
    assert {row["target_ebops"] for row in run.rows} == {1000}
    betas = [row["beta"] for row in run.rows]
    assert betas[0] == 0 < betas[1] and len(set(betas)) > 5
    assert [row["train/penalty"] > 0 for row in run.rows] == [beta > 0 for beta in betas]


def test_weights_that_are_saved_and_never_put_back_leave_fine_tuning_as_it_is() -> None:
    lengths = Training(pretraining_epochs=0, epochs=2, fine_tuning_epochs=1, save_weights_epoch=0, batch_size=32)
    found = trainer(DST(threshold_init=0.1), FIXED, lengths)
    found.fit(lambda row: None)
    assert {layer.pruner.stage for layer in found.pruned} == {Stage.FINETUNE}
    assert [row["stage"] for row in found.rows] == ["train", "train", "finetune"]
