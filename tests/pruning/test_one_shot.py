"""Magnitude pruning, and pruning without training."""

import copy

import pytest
import torch
from torch import Tensor, nn

import pquant
from pquant.errors import ConfigError
from pquant.layers import CompressedLayer
from pquant.pruning import CS, DST, MDMM, PDP, ActivationPruning, AutoSparse, Magnitude, PruningMethod, Wanda
from pquant.quantization import Quantization
from pquant.training import Stage

EIGHT_BITS = Quantization(
    default_weight_keep_negatives=True,
    default_weight_fractional_bits=7,
    default_data_keep_negatives=True,
    default_data_integer_bits="auto",
    default_data_fractional_bits=4,
    quantize_output=False,
)
READY: list[PruningMethod] = [Wanda(sparsity=0.5), ActivationPruning(threshold=0.5), Magnitude(sparsity=0.5)]
each_ready = pytest.mark.parametrize("method", READY, ids=lambda method: type(method).__name__)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.ConvTranspose2d(6, 6, 2, groups=3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(150, 4)).train()


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 2, 6, 6, generator=generator) for _ in range(3)]


def pruners(model: nn.Module) -> list:
    return [module.pruner for module in model.modules() if isinstance(module, CompressedLayer)]


@each_ready
@pytest.mark.parametrize("quantization", [None, EIGHT_BITS], ids=["float", "fixed"])
def test_a_float_model_is_pruned_from_a_few_batches(method: PruningMethod, quantization: Quantization | None) -> None:
    net = network()
    before = copy.deepcopy(net.state_dict())
    model = pquant.prune_one_shot(net, method, iter(batches()), quantization)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert all(pruner.stage is Stage.FINETUNE for pruner in pruners(model)) and model.training
    share = pquant.model_metrics(model)["mask_sparsity"]
    assert share == pytest.approx(0.5, abs=0.01) if not isinstance(method, ActivationPruning) else share > 0
    x = batches()[0]
    assert torch.equal(pquant.finalize(model)(x), model.eval()(x))


@each_ready
def test_the_pruned_model_can_be_fine_tuned(method: PruningMethod) -> None:
    model = pquant.prune_one_shot(network(), method, batches(), EIGHT_BITS)
    masks = [pruner.mask.clone() for pruner in pruners(model)]
    optimizer = torch.optim.SGD(pquant.parameter_groups(model), 0.1)
    (model(batches()[0]).square().mean() + pquant.penalty(model)).backward()
    optimizer.step()
    pquant.on_batch_end(model)
    assert all(torch.equal(pruner.mask, mask) for pruner, mask in zip(pruners(model), masks, strict=True))
    assert pquant.sparsity(model) >= pquant.model_metrics(model)["mask_sparsity"]


def test_every_batch_counts_whatever_the_window() -> None:
    method = Wanda(sparsity=0.5, t_start_collecting_batch=7, t_delta=1)
    net = nn.Linear(4, 3)
    seen = [torch.randn(5, 4) for _ in range(3)]
    model = pquant.prune_one_shot(net, method, seen)
    torch.testing.assert_close(model.pruner.energy[0], torch.cat(seen).square().sum(0))
    scores = net.weight.abs() * torch.cat(seen).norm(dim=0)
    assert torch.equal(model.pruner.mask, scores >= scores.sort(1).values[:, 2:3])


def test_the_model_is_seen_as_evaluation_has_it() -> None:
    model = pquant.prune_one_shot(network(), Wanda(sparsity=0.5), batches())
    hidden = network().eval()[:3](torch.cat(batches()))
    torch.testing.assert_close(model[4].pruner.energy[0], hidden.square().sum((0, 2, 3))[:2])


def test_ranges_left_open_are_chosen_from_all_batches() -> None:
    small = nn.Linear(4, 3)
    model = pquant.prune_one_shot(small, Wanda(sparsity=0.5), [torch.ones(2, 4), 100 * torch.ones(2, 4)], EIGHT_BITS)
    assert model.input_quantizer.format()[1] == 7


@each_ready
def test_a_compressed_model_keeps_its_quantizers_and_what_was_pruned(method: PruningMethod) -> None:
    given = pquant.prune_one_shot(network(), Magnitude(sparsity=0.25), batches(), EIGHT_BITS)
    before = copy.deepcopy(given.state_dict())
    model = pquant.prune_one_shot(given, method, batches())
    for name, value in given.state_dict().items():
        assert torch.equal(value, before[name]) if isinstance(value, Tensor) else value == before[name]
    assert [type(pruner.method) for pruner in pruners(model)] == [type(method)] * 3
    assert torch.equal(model[0].input_quantizer.i, given[0].input_quantizer.i)
    for old, new in zip(pruners(given), (module for module in model.modules() if isinstance(module, CompressedLayer)), strict=True):
        assert not new.finalized_parameters()[0][~old.mask].any()
    assert [pruner.makes_output for pruner in pruners(model)] == [False, False, True]
    with pytest.raises(ConfigError, match="keeps its quantization"):
        pquant.prune_one_shot(given, method, batches(), EIGHT_BITS)


def test_a_compressed_model_forgets_the_bias_of_channels_removed_before() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        net[0].bias.copy_(torch.tensor([-9.0, 9, 9, 9]))
    once = pquant.prune_one_shot(net, ActivationPruning(), [torch.rand(8, 3)])
    twice = pquant.prune_one_shot(once, Magnitude(sparsity=0.0), [torch.rand(8, 3)])
    x = torch.rand(5, 3)
    assert torch.equal(once.eval()(x), twice.eval()(x)) and twice[0].bias[0] == 0


def test_exclusions_and_tied_weights_hold_for_a_compressed_model_too() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    given = pquant.compress(net, DST())
    model = pquant.prune_one_shot(given, Magnitude(sparsity=0.5, disable_pruning_for_layers=["2"]), [torch.rand(8, 4)])
    assert model[0].pruner is model[1].pruner and model[0].weight is model[1].weight
    assert not model[2].prunable and model[2].finalized_parameters()[0].all() and pquant.sparsity(model) == 0.5
    with pytest.raises(ConfigError, match="unknown layer 'x'"):
        pquant.prune_one_shot(given, Magnitude(disable_pruning_for_layers=["x"]), [torch.rand(8, 4)])
    with pytest.raises(ConfigError, match="layer '0': Wanda.M"):
        pquant.prune_one_shot(given, Wanda(N=1, M=3), [torch.rand(8, 4)])


@pytest.mark.parametrize(
    ("method", "why"),
    [
        (DST(), "DST cannot prune in one shot: it trains a threshold"),
        (CS(), "CS cannot .* trains a score"),
        (AutoSparse(), "AutoSparse cannot .* trains a threshold"),
        (MDMM(use_grad=True), "MDMM cannot .* trains a multiplier"),
        (MDMM(), "MDMM cannot .* during training"),
        (PDP(), "PDP cannot .* during training"),
    ],
)
def test_methods_that_must_train_say_why_and_what_does_not(method: PruningMethod, why: str) -> None:
    with pytest.raises(ConfigError, match=f"{why}.*Wanda, ActivationPruning or Magnitude"):
        pquant.prune_one_shot(network(), method, batches())


def test_it_needs_a_batch() -> None:
    with pytest.raises(ConfigError, match="at least one calibration batch"):
        pquant.prune_one_shot(network(), Wanda(), [])


def test_models_of_several_inputs_take_tuples() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.layer(x + y)

    model = pquant.prune_one_shot(Sum(), Wanda(sparsity=0.5), [(torch.ones(2, 4), torch.ones(2, 4))] * 2)
    assert model.layer.pruner.energy[0].tolist() == [16.0] * 4


@pytest.mark.parametrize(("budget", "expected"), [("global", [70, 0]), ("uniform", [50, 20])])
def test_magnitude_takes_the_smallest_over_all_layers_or_in_each(budget: str, expected: list[int]) -> None:
    net = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 4))
    with torch.no_grad():
        net[1].weight.mul_(100)
    model = pquant.compress(net, Magnitude(sparsity=0.5, budget=budget))
    pquant.set_stage(model, Stage.TRAIN)
    assert [int((~pruner.mask).sum()) for pruner in pruners(model)] == expected
    kept, gone = model[0].weight[model[0].pruner.mask].abs(), model[0].weight[~model[0].pruner.mask].abs()
    assert kept.numel() == 0 or kept.min() > gone.max()


def test_magnitude_masks_once_as_training_starts() -> None:
    model = pquant.compress(nn.Linear(4, 4), Magnitude(sparsity=0.5))
    pquant.set_stage(model, Stage.PRETRAIN)
    assert pquant.sparsity(model) == 0
    pquant.set_stage(model, Stage.TRAIN)
    mask = model.pruner.mask.clone()
    assert pquant.sparsity(model) == 0.5
    again = pquant.compress(nn.Linear(4, 4), Magnitude(sparsity=0.5))
    again.load_state_dict(model.state_dict())
    for one in (model, again):
        with torch.no_grad():
            one.weight.copy_(torch.rand(4, 4))
        pquant.set_stage(one, Stage.TRAIN)
        assert torch.equal(one.pruner.mask, mask)


def test_magnitude_defaults_and_refusals() -> None:
    assert (Magnitude().sparsity, Magnitude().budget) == (0.8, "global")
    for wrong in ({"sparsity": 1.5}, {"budget": "equal"}, {"threshold_decay": 0.1}):
        with pytest.raises(ConfigError, match=f"Magnitude.{next(iter(wrong))}"):
            Magnitude(**wrong)
