"""Wanda against a brute-force reading of its paper, its window, its budgets and N:M."""

import copy
import logging
from collections.abc import Callable
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pquant
from pquant.errors import ConfigError
from pquant.layers import pruned_layers
from pquant.pruning import Wanda
from pquant.pruning.wanda import WandaPruner
from pquant.quantization import Quantization
from pquant.training import Stage
from pquant.training.stage import Horizon

EIGHT_BITS = Quantization(
    default_weight_keep_negatives=True, default_weight_fractional_bits=7, default_data_keep_negatives=True, default_data_integer_bits=3
)
CONVOLUTIONS = [nn.Conv1d, nn.Conv2d, nn.Conv3d]


def at_once(**settings: object) -> Wanda:
    """Return a Wanda whose window is the first step."""
    return Wanda(t_start_collecting_batch=0, t_delta=1, **settings)


def see(model: nn.Module, *inputs: Tensor) -> nn.Module:
    """Show each input in a training step that changes no weight."""
    if pruned_layers(model) and next(iter(pruned_layers(model).values())).pruner.stage is not Stage.TRAIN:
        pquant.set_stage(model, Stage.TRAIN)
    for x in inputs:
        model.train()(x)
        pquant.on_batch_end(model)
    return model


def oracle_scores(layer: nn.Module, x: Tensor) -> list[list[float]]:
    """Return |W_ij| * ||X_j|| of every output row, one weight at a time, inputs in memory order."""
    weight = layer.weight.detach().double()
    groups = getattr(layer, "groups", 1)
    per_group, axis = weight.shape[0] // groups, x.ndim - 1 if weight.ndim == 2 else 1
    rows = []
    for o in range(weight.shape[0]):
        row = []
        for index in product(*map(range, weight.shape[1:])):
            feature = x.double().select(axis, (o // per_group) * weight.shape[1] + index[0])
            row.append(float(weight[(o, *index)].abs() * feature.norm()))
        rows.append(row)
    return rows


def oracle_mask(scores: list[list[float]], pruned: int) -> list[list[bool]]:
    """Prune ``pruned`` weights in equal counts a row; those left over go where the next weight matters least."""
    each, extra = divmod(pruned, len(scores))
    counts = [each] * len(scores)
    if extra:
        for row in sorted(range(len(scores)), key=lambda row: sorted(scores[row])[each])[:extra]:
            counts[row] += 1
    borders = [sorted(row)[count - 1] if count else -1.0 for row, count in zip(scores, counts, strict=True)]
    return [[score > border for score in row] for row, border in zip(scores, borders, strict=True)]


def mask_of(layer: nn.Module) -> list[list[bool]]:
    return layer.pruner.mask.flatten(1).tolist()


@settings(max_examples=40)
@given(st.data())
def test_masks_are_those_of_the_oracle(data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 2**30)))
    kind = data.draw(st.sampled_from([nn.Linear, *CONVOLUTIONS]))
    share = data.draw(st.sampled_from([0.0, 0.29, 0.5, 0.9, 1.0]))
    if kind is nn.Linear:
        layer = nn.Linear(data.draw(st.integers(1, 7)), data.draw(st.integers(1, 5)))
        lead = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
        x = torch.randn(*lead, layer.in_features)
    else:
        groups = data.draw(st.integers(1, 3))
        inputs, outputs = groups * data.draw(st.integers(1, 3)), groups * data.draw(st.integers(1, 3))
        layer = kind(inputs, outputs, data.draw(st.integers(1, 2)), groups=groups, stride=data.draw(st.integers(1, 2)))
        x = torch.randn(3, inputs, *[3] * (CONVOLUTIONS.index(kind) + 1))
    model = see(pquant.compress(layer, at_once(sparsity=share)), x)
    assert mask_of(model) == oracle_mask(oracle_scores(layer, x), round(share * layer.weight.numel()))


def test_depthwise_convolutions_compare_within_each_kernel() -> None:
    layer = nn.Conv2d(4, 8, 3, groups=4)
    x = torch.randn(2, 4, 5, 5) * torch.tensor([1.0, 10, 100, 1000]).view(1, 4, 1, 1)
    model = see(pquant.compress(layer, at_once(sparsity=1 / 3)), x)
    assert mask_of(model) == oracle_mask(oracle_scores(layer, x), 24)
    assert [row.count(False) for row in mask_of(model)] == [3] * 8


def test_the_norm_is_over_all_samples_steps_and_tokens() -> None:
    layer = nn.Linear(6, 4)
    batches = [torch.randn(3, 5, 6), torch.randn(2, 5, 6)]
    model = see(pquant.compress(layer, Wanda(sparsity=0.5, t_start_collecting_batch=0, t_delta=2)), *batches)
    assert model.pruner.energy.shape == (1, 6)
    torch.testing.assert_close(model.pruner.energy[0], torch.cat(batches).square().sum((0, 1)))
    assert mask_of(model) == oracle_mask(oracle_scores(layer, torch.cat(batches)), 12)


def test_an_input_without_a_batch_axis_is_seen_too() -> None:
    model = see(pquant.compress(nn.Linear(6, 4), at_once(sparsity=0.5)), torch.arange(6.0))
    assert model.pruner.energy[0].tolist() == [0, 1, 4, 9, 16, 25]


def test_equal_norms_give_magnitude_pruning_by_row() -> None:
    layer = nn.Linear(8, 4)
    model = see(pquant.compress(layer, at_once(sparsity=0.5)), torch.ones(3, 8))
    assert mask_of(model) == oracle_mask(layer.weight.abs().tolist(), 16)
    assert [row.count(False) for row in mask_of(model)] == [4] * 4


def test_a_strong_input_keeps_its_column() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    x[:, 3] *= 1000
    model = see(pquant.compress(nn.Linear(8, 4), at_once(sparsity=0.8)), x)
    assert model.pruner.mask[:, 3].all()


def test_statistics_are_of_the_quantized_input() -> None:
    model = see(pquant.compress(nn.Linear(2, 3), at_once(sparsity=0.5), EIGHT_BITS), torch.tensor([[100.0, 0.2]]))
    assert model.pruner.energy.tolist() == [[49.0, 0.0]]


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 4), (4, 4), (1, 1), (4, 8)])
def test_n_of_every_m_inputs_stay(n: int, m: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 8)
    model = see(pquant.compress(nn.Linear(8, 5), at_once(N=n, M=m, sparsity=0.1)), x)
    scores = torch.tensor(oracle_scores(model, x)).view(-1, m)
    keep = model.pruner.mask.reshape(-1, m)
    assert (keep.sum(1) == n).all()
    for row, kept in zip(scores, keep, strict=True):
        assert set(row.topk(n).indices.tolist()) == set(kept.nonzero().flatten().tolist())


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("groups", [1, 2])
def test_n_of_m_runs_along_the_input_channels_of_convolutions(kind: type[nn.Module], groups: int) -> None:
    torch.manual_seed(0)
    dims = CONVOLUTIONS.index(kind) + 1
    model = see(pquant.compress(kind(8 * groups, 4, 3, groups=groups), at_once(N=2, M=4)), torch.randn(2, 8 * groups, *[4] * dims))
    mask = model.pruner.mask
    assert mask.shape == (4, 8, *[3] * dims)
    assert (mask[:, :4].sum(1) == 2).all() and (mask[:, 4:].sum(1) == 2).all()


def test_what_m_does_not_divide_is_refused_by_name() -> None:
    net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    with pytest.raises(ConfigError, match="layer '2': Wanda.M must divide the 6 inputs"):
        pquant.compress(net, Wanda(N=2, M=4))
    assert pquant.compress(net, Wanda(N=2, M=4, disable_pruning_for_layers=["2"]))


def test_the_window_counts_training_steps_and_prunes_once() -> None:
    model = pquant.compress(nn.Linear(4, 4), Wanda(sparsity=0.5, t_start_collecting_batch=2, t_delta=3))
    batches = [float(2**power) * torch.eye(4) for power in range(8)]
    see_stage, history = [], []
    pquant.set_stage(model, Stage.PRETRAIN)
    model.train()(torch.full((1, 4), 1e6)), pquant.on_batch_end(model)
    pquant.set_stage(model, Stage.TRAIN)
    for batch in batches:
        see_stage.append(bool(model.pruner.needs))
        see(model, batch)
        history.append((int(model.pruner.seen), model.pruner.pruned))
    assert see_stage == [False, False, True, True, True, False, False, False]
    assert history == [(0, False), (0, False), (1, False), (2, False), (3, True), (3, True), (3, True), (3, True)]
    assert model.pruner.energy.tolist() == [[2.0**4 + 2.0**6 + 2.0**8] * 4]
    mask = model.pruner.mask.clone()
    with torch.no_grad():
        model.weight.copy_(torch.rand(4, 4))
    see(model, torch.randn(2, 4))
    assert torch.equal(model.pruner.mask, mask)


def test_evaluation_passes_are_not_collected() -> None:
    model = pquant.compress(nn.Linear(4, 4), Wanda(t_start_collecting_batch=0, t_delta=3))
    pquant.set_stage(model, Stage.TRAIN)
    model.eval()(torch.randn(2, 4))
    assert model.pruner.seen == 0


@pytest.mark.parametrize(("start", "delta", "window"), [(2, 3, (2, 5)), (2, 30, (2, 6)), (30, 3, (5, 6))])
def test_a_window_longer_than_training_ends_with_it_and_warns(start: int, delta: int, window: tuple[int, int]) -> None:
    method = Wanda(sparsity=0.5, t_start_collecting_batch=start, t_delta=delta)
    horizon = Horizon(epochs=3, steps_per_epoch=2)
    assert method.window(horizon) == window and method.window(None) == (start, start + delta)
    found = method.warnings(horizon)
    assert bool(found) is (start + delta > 6)
    if found:
        assert f"steps {start} to {start + delta}" in found[0] and "6 training steps" in found[0] and "<= 3" in found[0]
    model = pquant.compress(nn.Linear(4, 4), method)
    pquant.set_stage(model, Stage.TRAIN, horizon)
    see(model, *[torch.randn(3, 4) for _ in range(6)])
    assert model.pruner.pruned and pquant.sparsity(model) == 0.5


def test_freezing_within_the_window_prunes_with_what_there_is(caplog: pytest.LogCaptureFixture) -> None:
    model = see(pquant.compress(nn.Linear(4, 4), Wanda(sparsity=0.5, t_start_collecting_batch=0, t_delta=9)), torch.randn(3, 4))
    with caplog.at_level(logging.WARNING):
        pquant.set_stage(model, Stage.FINETUNE)
    assert "pruning with the 1 batches collected" in caplog.text
    assert pquant.sparsity(model) == 0.5


def test_a_layer_without_data_raises() -> None:
    model = pquant.compress(nn.Linear(4, 4), at_once())
    pquant.set_stage(model, Stage.TRAIN)
    with pytest.raises(RuntimeError, match="has seen no input"):
        pquant.on_batch_end(model)


@pytest.mark.parametrize("together", [True, False])
def test_budgets_are_global_or_uniform(together: bool) -> None:
    net = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 4))
    with torch.no_grad():
        net[1].weight.mul_(100)
    model = see(pquant.compress(net, at_once(sparsity=0.5, calculate_pruning_budget=together)), torch.randn(8, 10))
    zeros = [int((~layer.pruner.mask).sum()) for layer in (model[0], model[1])]
    assert zeros == ([70, 0] if together else [50, 20])
    assert pquant.sparsity(model) == 0.5


@pytest.mark.parametrize("together", [True, False])
def test_excluding_a_layer_does_not_lower_the_sparsity_of_the_others(together: bool) -> None:
    net = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 10), nn.Linear(10, 4))
    method = at_once(sparsity=0.7, calculate_pruning_budget=together, disable_pruning_for_layers=["0"])
    model = see(pquant.compress(net, method), torch.randn(8, 10))
    assert pquant.sparsity(model) == pytest.approx(0.7, abs=1 / 240)
    assert model[0].weight.all() and not model[0].prunable


@pytest.mark.parametrize("first", [True, False])
def test_outputs_stay_from_training_to_fine_tuning_to_finalize(first: bool) -> None:
    torch.manual_seed(0)
    quantization = Quantization(
        default_weight_keep_negatives=True, default_weight_fractional_bits=4, quantize_input=False, quantize_output=False, pruning_first=first
    )
    x = torch.randn(9, 6)
    model = see(pquant.compress(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), at_once(sparsity=0.5), quantization), x)
    last = model.eval()(x)
    assert torch.equal(pquant.finalize(model)(x), last)
    pquant.set_stage(model, Stage.FINETUNE)
    assert torch.equal(model.eval()(x), last)
    assert torch.equal(pquant.finalize(model)(x), last)


@pytest.mark.parametrize("stop", range(5))
def test_the_window_goes_on_from_a_saved_state(stop: int) -> None:
    method = Wanda(sparsity=0.5, t_start_collecting_batch=1, t_delta=3)
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    batches = [torch.randn(3, 4) for _ in range(5)]
    whole, again = pquant.compress(net, method), pquant.compress(net, method)
    pquant.set_stage(whole, Stage.TRAIN, Horizon(5, 1))
    see(whole, *batches[:stop])
    again.load_state_dict(copy.deepcopy(whole.state_dict()))
    see(whole, *batches[stop:]), see(again, *batches[stop:])
    for name, value in whole.state_dict().items():
        other = again.state_dict()[name]
        assert torch.equal(value, other) if isinstance(value, Tensor) else value == other
    assert whole[0].pruner.pruned


def test_a_step_does_not_wait_for_the_device(no_host_sync: Callable) -> None:
    model = pquant.compress(nn.Linear(4, 4), Wanda(t_start_collecting_batch=0, t_delta=9))
    pquant.set_stage(model, Stage.TRAIN)
    with no_host_sync():
        see(model, torch.randn(3, 4))
        (model(torch.randn(3, 4)).sum() + pquant.penalty(model)).backward()
    assert isinstance(model.pruner, WandaPruner) and model.pruner.seen == 2


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("layer", [nn.Linear(1, 1), nn.Linear(1, 3), nn.Linear(3, 1)])
def test_all_nothing_and_the_smallest_layers(share: float, layer: nn.Linear) -> None:
    model = see(pquant.compress(layer, at_once(sparsity=share)), torch.ones(2, layer.in_features))
    assert pquant.sparsity(model) == share


@pytest.mark.parametrize(
    "wrong", [{"N": 2}, {"M": 4}, {"N": 5, "M": 4}, {"sparsity": 1.1}, {"t_delta": 0}, {"t_start_collecting_batch": -1}, {"threshold_decay": 0.1}]
)
def test_impossible_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match="Wanda."):
        Wanda(**wrong)
