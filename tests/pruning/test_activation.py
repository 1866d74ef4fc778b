"""Activation pruning: which channels go, that all of them goes, and that they stay away."""

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pquant
from pquant.errors import ConfigError
from pquant.layers import pruned_layers
from pquant.pruning import ActivationPruning
from pquant.quantization import Quantization
from pquant.training import Stage
from pquant.training.stage import Horizon

CONVOLUTIONS = [nn.Conv1d, nn.Conv2d, nn.Conv3d]
COARSE = Quantization(
    default_weight_keep_negatives=True,
    default_weight_integer_bits=2,
    default_weight_fractional_bits=3,
    quantize_input=False,
    quantize_output=False,
)


def at_once(threshold: float = 0.3, **settings: object) -> ActivationPruning:
    """Return a method whose window is the first step, and which prunes a lone layer too."""
    return ActivationPruning(**{"threshold": threshold, "t_start_collecting_batch": 0, "t_delta": 1, "prune_output_layer": True} | settings)


def see(model: nn.Module, *inputs: Tensor) -> nn.Module:
    """Show each input in a training step that changes no weight."""
    if next(iter(pruned_layers(model).values())).pruner.stage is not Stage.TRAIN:
        pquant.set_stage(model, Stage.TRAIN)
    for x in inputs:
        model.train()(x)
        pquant.on_batch_end(model)
    return model


def by_bias(*biases: float) -> nn.Linear:
    """Return a layer whose outputs are its biases, plus a little of its input."""
    layer = nn.Linear(3, len(biases))
    with torch.no_grad():
        layer.weight.fill_(1e-3)
        layer.bias.copy_(torch.tensor(biases))
    return layer


def kept(layer: nn.Module) -> list[bool]:
    mask = layer.pruner.mask.flatten(1)
    assert torch.equal(mask.all(1), mask.any(1))
    return mask[:, 0].tolist()


def test_a_silent_channel_goes_with_its_bias_and_a_firing_one_stays() -> None:
    model = see(pquant.compress(by_bias(-5.0, 5.0, 3.0), at_once()), torch.rand(4, 3))
    assert kept(model) == [False, True, True]
    weight, bias = model.finalized_parameters()
    assert bias.tolist() == [0, 5, 3] and not weight[0].any() and weight[1:].all()
    assert model.train()(torch.rand(4, 3))[:, 0].tolist() == [0] * 4
    final = pquant.finalize(model)
    assert final.bias.tolist() == [0, 5, 3] and not final.weight[0].any()


def test_the_bias_of_a_removed_channel_gets_no_gradient() -> None:
    model = see(pquant.compress(by_bias(-5.0, 5.0), at_once()), torch.rand(4, 3))
    model(torch.rand(4, 3)).sum().backward()
    assert model.bias.grad.tolist() == [0, 4] and not model.weight.grad[0].any()


@settings(max_examples=40)
@given(st.data())
def test_channels_stay_whose_activity_is_above_the_threshold(data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 2**30)))
    statistic = data.draw(st.sampled_from(["frequency", "mean_abs"]))
    threshold = data.draw(st.sampled_from([0.0, 0.3, 0.5, 0.7]))
    kind = data.draw(st.sampled_from([nn.Linear, *CONVOLUTIONS]))
    batches = data.draw(st.integers(1, 3))
    if kind is nn.Linear:
        layer = nn.Linear(3, data.draw(st.integers(1, 6)))
        inputs = [torch.randn(*data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)), 3) for _ in range(batches)]
        axis = -1
    else:
        groups = data.draw(st.integers(1, 3))
        channels = groups * data.draw(st.integers(1, 2))
        layer = kind(channels, groups * data.draw(st.integers(1, 3)), 2, groups=groups)
        inputs = [torch.randn(data.draw(st.integers(1, 4)), channels, *[3] * (CONVOLUTIONS.index(kind) + 1)) for _ in range(batches)]
        axis = 1
    model = see(pquant.compress(layer, at_once(threshold, statistic=statistic, t_delta=batches)), *inputs)
    outputs = torch.cat([layer(x).movedim(axis, 0).flatten(1) for x in inputs], 1)
    activity = (outputs > 0).double().mean(1) if statistic == "frequency" else outputs.double().abs().mean(1)
    expected = (activity > threshold).tolist()
    if activity[activity > threshold].numel() == 0:
        expected[int(activity.argmax())] = True
    assert kept(model) == expected


def test_a_threshold_of_zero_keeps_what_was_ever_active() -> None:
    model = see(pquant.compress(by_bias(-5.0, -0.001, 5.0), at_once(0.0)), torch.tensor([[9.0, 9, 9], *[[-9.0, -9, -9]] * 99]))
    assert kept(model) == [False, True, True]


@pytest.mark.parametrize(("statistic", "expected"), [("frequency", [False, True, False, True]), ("mean_abs", [True, False, False, True])])
def test_the_statistic_is_how_often_or_how_much(statistic: str, expected: list[bool]) -> None:
    model = see(pquant.compress(by_bias(-5.0, 0.1, -0.1, 5.0), at_once(0.5, statistic=statistic)), torch.zeros(4, 3))
    assert kept(model) == expected


def test_the_most_active_channel_always_stays() -> None:
    model = see(pquant.compress(by_bias(-5.0, -4.0, -0.001), at_once(0.9)), torch.tensor([[9.0, 9, 9], [-9.0, -9, -9]]))
    assert kept(model) == [False, False, True]
    assert kept(see(pquant.compress(by_bias(-5.0, -4.0), at_once()), torch.zeros(2, 3))).count(True) == 1
    assert kept(see(pquant.compress(by_bias(-5.0), at_once()), torch.zeros(2, 3))) == [True]


def test_it_never_prunes_again_and_never_brings_back() -> None:
    model = see(pquant.compress(by_bias(-5.0, 5.0), at_once()), torch.rand(4, 3))
    with torch.no_grad():
        model.bias.copy_(torch.tensor([5.0, -5.0]))
    see(model, *[torch.rand(4, 3)] * 5)
    assert kept(model) == [False, True]


@pytest.mark.parametrize("asked", [False, True])
def test_the_output_layer_keeps_its_channels_unless_asked(asked: bool) -> None:
    net = nn.Sequential(by_bias(-5.0, 5.0, 5.0), nn.ReLU(), by_bias(-5.0, 5.0))
    model = see(pquant.compress(net, at_once(prune_output_layer=asked), example_input=torch.rand(2, 3)), torch.rand(4, 3))
    assert kept(model[0]) == [False, True, True]
    assert kept(model[2]) == [not asked, True]
    assert bool(model[2].pruner.seen) is asked
    pquant.set_stage(model, Stage.FINETUNE)
    assert kept(model[2]) == [not asked, True]


def test_a_layer_named_in_the_exclusions_keeps_its_channels() -> None:
    net = nn.Sequential(by_bias(-5.0, 5.0, 5.0), nn.ReLU(), by_bias(-5.0, 5.0))
    model = see(pquant.compress(net, at_once(disable_pruning_for_layers=["0"])), torch.rand(4, 3))
    assert model[0].finalized_parameters()[0].all() and model[0].finalized_parameters()[1].all()
    assert kept(model[2]) == [False, True]


@pytest.mark.parametrize("groups", [1, 2])
def test_removing_the_channels_for_good_gives_the_same_network(groups: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 8, 3, groups=groups), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 3))
    x = torch.randn(5, 2, 6, 6)
    model = see(pquant.compress(net, at_once(0.5, prune_output_layer=False), example_input=x), x)
    final = pquant.finalize(model)
    left = [channel for channel, stays in enumerate(kept(model[0])) if stays]
    assert 0 < len(left) < 8
    features = torch.relu(nn.functional.conv2d(x, net[0].weight, net[0].bias, groups=groups))[:, left]
    weight = final[3].weight.view(3, 8, 16)[:, left].flatten(1)
    torch.testing.assert_close(final(x), nn.functional.linear(features.flatten(1), weight, final[3].bias))


def test_depthwise_channels_go_with_their_kernels() -> None:
    layer = nn.Conv2d(4, 4, 3, groups=4)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([-9.0, 9, -9, 9]))
    model = see(pquant.compress(layer, at_once()), torch.randn(2, 4, 5, 5))
    assert kept(model) == [False, True, False, True] and model.finalized_parameters()[1].tolist() == [0, 9, 0, 9]


def test_the_window_counts_training_steps() -> None:
    model = pquant.compress(by_bias(-5.0, 5.0), at_once(t_start_collecting_batch=2, t_delta=3))
    pquant.set_stage(model, Stage.PRETRAIN)
    model.train()(torch.rand(1, 3)), pquant.on_batch_end(model)
    pquant.set_stage(model, Stage.TRAIN)
    history = []
    for _ in range(7):
        see(model, torch.rand(4, 3))
        history.append((int(model.pruner.seen), int(model.pruner.values), model.pruner.pruned))
    assert history == [(0, 0, False), (0, 0, False), (1, 4, False), (2, 8, False), *[(3, 12, True)] * 3]


def test_the_default_window_is_the_specifications() -> None:
    method = ActivationPruning()
    assert method.window(None) == (50, 100) and method.window(Horizon(5, 15)) == (50, 75)
    assert "ActivationPruning's window (steps 50 to 100)" in method.warnings(Horizon(5, 15))[0] and not method.warnings(Horizon(5, 20))


def test_the_mask_waits_for_pretraining_to_end() -> None:
    model = see(pquant.compress(by_bias(-5.0, 5.0), at_once()), torch.rand(4, 3))
    pquant.set_stage(model, Stage.PRETRAIN)
    assert model.effective()[1].tolist() == [-5, 5]


@pytest.mark.parametrize("first", [True, False])
def test_outputs_stay_from_training_to_fine_tuning_to_finalize(first: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(9, 6)
    quantization = Quantization(**{name: getattr(COARSE, name) for name in COARSE.__dataclass_fields__} | {"pruning_first": first})
    model = see(pquant.compress(net, at_once(0.5), quantization), x)
    last = model.eval()(x)
    assert not all(kept(model[0]))
    assert torch.equal(pquant.finalize(model)(x), last)
    pquant.set_stage(model, Stage.FINETUNE)
    assert torch.equal(model.eval()(x), last)
    assert torch.equal(pquant.finalize(model)(x), last)


@pytest.mark.parametrize("stop", range(5))
def test_the_window_goes_on_from_a_saved_state(stop: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    batches = [torch.randn(3, 4) for _ in range(5)]
    method = at_once(0.5, t_start_collecting_batch=1, t_delta=3)
    whole, again = pquant.compress(net, method), pquant.compress(net, method)
    pquant.set_stage(whole, Stage.TRAIN, Horizon(5, 1))
    see(whole, *batches[:stop])
    again.load_state_dict(copy.deepcopy(whole.state_dict()))
    see(whole, *batches[stop:]), see(again, *batches[stop:])
    for name, value in whole.state_dict().items():
        other = again.state_dict()[name]
        assert torch.equal(value, other) if isinstance(value, Tensor) else value == other
    assert whole[0].pruner.pruned and not all(kept(whole[0]))


def test_a_step_does_not_wait_for_the_device(no_host_sync: Callable) -> None:
    model = pquant.compress(nn.Conv2d(2, 4, 3), at_once(t_delta=9))
    pquant.set_stage(model, Stage.TRAIN)
    with no_host_sync():
        see(model, torch.randn(3, 2, 5, 5))
        (model(torch.randn(3, 2, 5, 5)).sum() + pquant.penalty(model)).backward()
    assert model.pruner.seen == 2


@pytest.mark.parametrize("wrong", [{"threshold": 1.0}, {"threshold": -0.1}, {"t_delta": 0}, {"t_start_collecting_batch": -1}, {"statistic": "often"}])
def test_impossible_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=f"ActivationPruning.{next(iter(wrong))}"):
        ActivationPruning(**wrong)
    assert ActivationPruning(statistic="mean_abs", threshold=1.5).threshold == 1.5
