"""What holds for every pruning method, on every kind of layer and in every stage."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import pquant
from pquant.errors import ConfigError
from pquant.layers import pruned_layers
from pquant.metrics import Penalty
from pquant.pruning import ActivationPruning, PruningMethod, Wanda
from pquant.training.lifecycle import StepEvents

from ..formats import EIGHT_BITS
from ..methods import every_method

METHODS = every_method(start=1, delta=3)
EPOCHS, STEPS = 4, 2


def network() -> nn.Module:
    torch.manual_seed(1)
    layers = [
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 6, 1, groups=2),
    ]
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 5))


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(16, 2, 6, 6, generator=generator), torch.randint(0, 5, (16,), generator=generator)


def epoch(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    x, y = inputs()
    model.train()
    for _ in range(STEPS):
        loss = nn.functional.cross_entropy(model(x), y) + pquant.penalty(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pquant.on_batch_end(model)
    pquant.on_epoch_end(model)


def started(method: PruningMethod) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = pquant.compress(network(), method, EIGHT_BITS, inputs()[0])
    return model, torch.optim.SGD(pquant.parameter_groups(model), 0.05)


def trained(method: PruningMethod) -> tuple[nn.Module, torch.optim.Optimizer]:
    model, optimizer = started(method)
    pquant.set_stage(model, pquant.Stage.TRAIN, pquant.Horizon(EPOCHS, STEPS))
    for _ in range(EPOCHS):
        epoch(model, optimizer)
    return model, optimizer


def output(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(inputs()[0])


each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)


@each_method
def test_pretraining_moves_no_state_and_prunes_nothing(method: PruningMethod) -> None:
    model, optimizer = started(method)
    before = copy.deepcopy({name: layer.pruner.state_dict() for name, layer in pruned_layers(model).items()})
    epoch(model, optimizer)
    assert float(pquant.penalty(model)) == 0
    for name, layer in pruned_layers(model).items():
        assert torch.equal(layer.pruner(layer.weight), layer.weight)
        for key, value in layer.pruner.state_dict().items():
            assert torch.equal(value, before[name][key]) if isinstance(value, Tensor) else value == before[name][key]


@each_method
def test_no_output_moves_at_the_end_of_training_nor_by_finalizing(method: PruningMethod) -> None:
    model, optimizer = trained(method)
    last = output(model)
    assert torch.equal(output(pquant.finalize(model)), last)
    pquant.set_stage(model, pquant.Stage.FINETUNE)
    assert torch.equal(output(model), last)
    masks = {name: layer.pruner.mask.clone() for name, layer in pruned_layers(model).items()}
    epoch(model, optimizer)
    assert float(pquant.penalty(model)) == 0
    final = pquant.finalize(model)
    assert torch.equal(output(final), output(model))
    for name, mask in masks.items():
        assert torch.equal(pruned_layers(model)[name].pruner.mask, mask)
        assert not final.get_submodule(name).finalized_parameters()[0][~mask].any()
    assert pquant.sparsity(final) == pquant.sparsity(model) > 0


@each_method
def test_reading_in_evaluation_changes_nothing(method: PruningMethod) -> None:
    model, _ = trained(method)
    before = copy.deepcopy(model.state_dict())
    output(model), pquant.sparsity(model), pquant.penalty(model), pquant.model_metrics(model)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) if isinstance(value, Tensor) else value == before[key]


@each_method
@pytest.mark.parametrize("stop", range(1, EPOCHS))
def test_state_saved_within_training_goes_on_identically(method: PruningMethod, stop: int) -> None:
    whole, optimizer = started(method)
    pquant.set_stage(whole, pquant.Stage.TRAIN, pquant.Horizon(EPOCHS, STEPS))
    for _ in range(stop):
        epoch(whole, optimizer)
    again, other = started(method)
    again.load_state_dict(copy.deepcopy(whole.state_dict()))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(EPOCHS - stop):
        epoch(whole, optimizer)
        epoch(again, other)
    pquant.set_stage(whole, pquant.Stage.FINETUNE)
    pquant.set_stage(again, pquant.Stage.FINETUNE)
    assert torch.equal(output(whole), output(again))


@each_method
def test_switched_off_or_excluded_layers_keep_everything(method: PruningMethod) -> None:
    off, _ = trained(replace(method, enable_pruning=False))
    assert not pruned_layers(off)
    model, _ = trained(replace(method, disable_pruning_for_layers=["0", "3"]))
    assert set(pruned_layers(model)) == {"5", "8"}
    assert model[0].finalized_parameters()[0].count_nonzero() > 0.8 * model[0].weight.numel()
    with pytest.raises(ConfigError, match="unknown layer '9'"):
        started(replace(method, disable_pruning_for_layers=["9"]))


@pytest.mark.parametrize("excluded", [[], ["8"], ["0", "5"]])
@pytest.mark.parametrize("method", [METHODS[2], METHODS[3], METHODS[7]], ids=lambda method: type(method).__name__)
def test_targets_are_met_over_the_layers_that_take_part(method: PruningMethod, excluded: list[str]) -> None:
    model, _ = trained(replace(method, disable_pruning_for_layers=excluded))
    layers = pruned_layers(model).values()
    pruned = sum(int((~layer.pruner.hard_mask(layer.weight)).sum()) for layer in layers)
    total = sum(layer.weight.numel() for layer in layers)
    assert abs(pruned / total - 0.5) <= len(layers) / total


@each_method
def test_a_compiled_step_is_one_graph_with_the_same_gradients(method: PruningMethod) -> None:
    plain, optimizer = started(method)
    pquant.set_stage(plain, pquant.Stage.TRAIN, pquant.Horizon(EPOCHS, STEPS))
    epoch(plain, optimizer)
    optimizer.zero_grad()
    other = copy.deepcopy(plain)
    x, y = inputs()
    graphs: list[torch.fx.GraphModule] = []

    def losses(model: nn.Module) -> Callable[[], Tensor]:
        penalty = Penalty(model)
        return lambda: nn.functional.cross_entropy(model(x), y) + penalty()

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Tensor]:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(losses(other.train()), backend=backend, fullgraph=True)
    for step in (compiled, losses(plain.train())):
        step().backward()
    compiled()
    for (name, one), two in zip(plain.named_parameters(), other.parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None), name
        if one.grad is not None and two.grad is not None:
            torch.testing.assert_close(one.grad, two.grad, msg=name)
    assert len(graphs) == 1


@pytest.mark.parametrize(
    "method", [method for method in METHODS if not isinstance(method, (Wanda, ActivationPruning))], ids=lambda m: type(m).__name__
)
def test_graphs_of_a_stage_are_made_once_however_long_it_is(method: PruningMethod) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Tensor]:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model = pquant.compress(network(), method, replace(EIGHT_BITS, use_hgq=True, hgq_beta=1e-5), inputs()[0]).train()
    optimizer = torch.optim.SGD(pquant.parameter_groups(model), 0.05)
    pquant.set_stage(model, pquant.Stage.TRAIN, pquant.Horizon(EPOCHS, STEPS))
    penalty, events = Penalty(model), StepEvents(model)
    x, y = inputs()
    loss = torch.compile(lambda: nn.functional.cross_entropy(model(x), y) + penalty(), backend=backend)
    counts = []
    for _ in range(EPOCHS):
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
            events()
        pquant.on_epoch_end(model)
        counts.append(len(graphs))
    assert counts == [1] * EPOCHS
