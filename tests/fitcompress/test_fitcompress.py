"""The section's settings, the search on networks, and what a model becomes by it."""

import copy
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import pquant
from pquant.errors import ConfigError
from pquant.fitcompress import FITCompress, PruningSchedule, Result, StoppingRule
from pquant.fitcompress.mask import SearchedMask
from pquant.layers.queries import weight_layers
from pquant.pruning import DST, NoPruning
from pquant.quantization import Quantization
from pquant.tracking.files import write_json
from pquant.training import Stage, Training

from ..formats import EIGHT_BITS

FIXED = replace(EIGHT_BITS, quantize_output=False, use_relu_multiplier=False)
RULE = StoppingRule(batch_size=16, min_iterations=2, max_iterations=4)
BITS = FITCompress(enable_fitcompress=True, fisher=RULE)
BOTH = replace(BITS, optimize_pruning=True)


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (96,), generator=generator)
    return TensorDataset(torch.randn(96, 12, generator=generator) + 2 * torch.eye(3, 12)[y], y)


def pretrained(net: nn.Module) -> nn.Module:
    x, y = data().tensors
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return pretrained(nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)))


def cnn() -> nn.Module:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2), nn.ReLU())
    return pretrained(nn.Sequential(nn.Unflatten(1, (1, 3, 4)), body, nn.Flatten(), nn.Linear(8, 3)))


def compressed(settings: FITCompress, quantization: Quantization = FIXED, net: nn.Module | None = None, **pruning: Any) -> nn.Module:
    model = pquant.compress(net or mlp(), settings.masks(NoPruning(**pruning)), quantization, data().tensors[0][:4])
    settings.prepare(model)
    return model


def found(settings: FITCompress, quantization: Quantization = FIXED, net: nn.Module | None = None, **pruning: Any) -> Result:
    return settings.search(compressed(settings, quantization, net, **pruning), data(), F.cross_entropy)


@pytest.mark.parametrize("net", [mlp, cnn])
@pytest.mark.parametrize("settings", [BITS, BOTH, replace(BOTH, optimize_quantization=False), replace(BOTH, greedy_astar=False, max_states=200)])
def test_the_model_is_as_small_as_the_search_says_and_its_weights_are_untouched(settings: FITCompress, net: Any) -> None:
    settings = replace(settings, compression_goal=0.12)
    model = compressed(settings, net=net())
    before = [layer.weight.detach().clone() for layer in weight_layers(model).values()]
    result = settings.apply(model, data(), F.cross_entropy)
    assert result.reached and 0 < result.compression <= 0.12
    pquant.set_stage(model, Stage.TRAIN)
    bits = total = 0.0
    for (name, layer), weight in zip(weight_layers(model).items(), before, strict=True):
        entry = result.layers[name]
        assert torch.equal(layer.weight, weight) and not layer.weight_quantizer.is_float
        if entry.format:
            assert [int(one) for one in layer.weight_quantizer.format()] == [entry.format.k, entry.format.i, entry.format.f]
        values = layer.finalized_parameters()[0]
        kept = int(values.count_nonzero()) if settings.optimize_pruning else values.numel()
        if entry.bits < 32:
            assert entry.sparsity == pytest.approx(1 - kept / values.numel())
            assert entry.bits == float(layer.weight_quantizer.width())
        bits, total = bits + kept * float(layer.weight_quantizer.width()), total + 32 * values.numel()
    assert bits / total <= result.compression * (1 + 1e-9)
    if all(entry.bits < 32 for entry in result.layers.values()):
        assert bits / total == pytest.approx(result.compression)


def test_the_search_leaves_the_model_it_is_given() -> None:
    model = compressed(BOTH)
    model.train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    BOTH.search(model, data(), F.cross_entropy)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items() if isinstance(value, torch.Tensor))
    assert all(module.training for module in model.modules()) and torch.equal(state, torch.get_rng_state())
    assert model[0].weight_quantizer.is_float


def test_the_search_is_deterministic() -> None:
    assert found(BOTH) == found(BOTH)


def test_zeros_of_the_search_stay_zero_through_training() -> None:
    model = compressed(BOTH)
    result = BOTH.apply(model, data(), F.cross_entropy)
    pquant.set_stage(model, Stage.TRAIN)
    pretrained(model)
    pquant.set_stage(model, Stage.FINETUNE)
    for name, layer in weight_layers(pquant.finalize(model)).items():
        assert 1 - int(layer.weight.count_nonzero()) / layer.weight.numel() >= result.layers[name].sparsity - 1e-9


def test_the_path_leads_from_float_to_the_result() -> None:
    result = found(BOTH)
    assert [step.length for step in result.path] == sorted(step.length for step in result.path)
    assert result.path[-1].compression == result.compression
    assert any(step.step.startswith("prune 0.") for step in result.path) and any(step.step == "0 to 8 bits" for step in result.path)
    assert result.predicted_loss == pytest.approx(sum(entry.predicted_loss for entry in result.layers.values())) and result.predicted_loss > 0
    assert result.fisher_iterations == 4 and 0 < result.fisher_error < 1
    assert all(entry.fisher_trace > 0 and entry.input_fisher_trace > 0 for entry in result.layers.values())


# Each field does something.


def test_optimize_quantization_and_pruning_say_what_is_searched() -> None:
    bits, both, pruning = found(BITS), found(BOTH), found(replace(BOTH, optimize_quantization=False))
    assert bits.pruning_share == 0 and {entry.sparsity for entry in bits.layers.values()} == {0.0}
    assert both.pruning_share > 0 and min(entry.bits for entry in both.layers.values()) < 8
    assert pruning.pruning_share > 0.5 and {entry.bits for entry in pruning.layers.values()} == {8.0}
    assert pruning.layer_specific == {}


def test_the_quantization_schedule_holds_the_bits_beside_the_sign() -> None:
    result = found(replace(BITS, quantization_schedule=[9, 5, 2], compression_goal=0.12))
    assert {entry.bits for entry in result.layers.values()} <= {32.0, 10.0, 6.0, 3.0}
    assert result.compression <= 0.12
    unsigned = found(replace(BITS, quantization_schedule=[3.0]), replace(FIXED, default_weight_keep_negatives=False))
    assert unsigned.layers["0"].bits == 3.0 and unsigned.layers["0"].format.k == 0


def test_the_pruning_schedule_is_a_curve_of_powers_of_ten() -> None:
    shares = PruningSchedule().shares()
    assert len(shares) == 40 and shares[0] == 0 and shares[-1] == pytest.approx(0.999) and list(shares) == sorted(shares)
    assert PruningSchedule(start=-1, end=-2, steps=2).shares() == pytest.approx((0.0, 0.9, 0.99))
    result = found(replace(BOTH, pruning_schedule=PruningSchedule(start=-0.3, end=-0.6, steps=2)))
    assert result.pruning_share in (pytest.approx(1 - 10**-0.3), pytest.approx(1 - 10**-0.6))


@pytest.mark.parametrize("goal", [0.5, 0.2, 0.05])
def test_the_goal_is_reached_and_not_overshot_by_more_than_a_step(goal: float) -> None:
    result = found(replace(BOTH, compression_goal=goal))
    assert result.compression <= goal < result.path[-2].compression and result.compression_goal == goal


def test_the_full_search_finds_a_way_no_longer_than_the_greedy_one() -> None:
    greedy, full = found(BITS), found(replace(BITS, greedy_astar=False))
    assert full.path[-1].length <= greedy.path[-1].length
    assert full.shortest and not greedy.shortest and full.expanded > greedy.expanded
    assert not found(replace(BITS, greedy_astar=False, max_states=3)).shortest


def test_approximate_reuses_the_fisher_information_for_lower_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = {flag: [step.length for step in found(replace(BITS, approximate=flag)).path] for flag in (True, False)}
    assert lengths[True][0] == pytest.approx(lengths[False][0]) and lengths[True][-1] != lengths[False][-1]


def test_lambda_weighs_the_distance_ahead() -> None:
    paths = [[step.step for step in found(replace(BITS, f_lambda=f_lambda)).path] for f_lambda in (0.0, 100.0)]
    assert paths[0] != paths[1]
    # Without it the cheapest step comes first, with much of it the one that saves most.
    assert paths[1][0] == "0 to 8 bits"


def test_the_stopping_rule_reaches_the_estimate() -> None:
    assert found(replace(BITS, fisher=replace(RULE, max_iterations=2))).fisher_iterations == 2
    assert found(replace(BITS, fisher=StoppingRule(batch_size=48, max_iterations=9, tolerance=0.0, min_iterations=2))).fisher_iterations == 2


# Settings and layers that go together, or do not.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantization_schedule": []}, "quantization_schedule"),
        ({"quantization_schedule": [4, 7]}, "each lower than the one before"),
        ({"quantization_schedule": [4.5]}, "whole numbers"),
        ({"quantization_schedule": [40]}, "from 31 to 1"),
        ({"compression_goal": 0}, "compression_goal"),
        ({"f_lambda": -1}, "f_lambda"),
        ({"max_states": 0}, "max_states"),
        ({"enable_fitcompress": True, "optimize_quantization": False}, "nothing to search"),
    ],
)
def test_values_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FITCompress(**settings)


@pytest.mark.parametrize(
    ("settings", "pruning", "quantization", "epochs", "message"),
    [
        (BITS, NoPruning(), replace(FIXED, use_hgq=True), 1, "searches the bits that Quantization.use_hgq trains"),
        (BITS, NoPruning(), Quantization(enable_quantization=False), 1, "needs Quantization.enable_quantization"),
        (BOTH, DST(), FIXED, 1, "makes the masks that DST would make: use pruning=none"),
        (BOTH, NoPruning(enable_pruning=False), FIXED, 1, "needs pruning.enable_pruning"),
        (BITS, NoPruning(), FIXED, 0, "Training.epochs must be at least 1, got 0"),
        (
            replace(BITS, result="nowhere.json"),
            NoPruning(),
            FIXED,
            1,
            "FITCompress.result must be the fitcompress.json of an earlier run, got 'nowhere",
        ),
    ],
)
def test_sections_that_do_not_go_together_are_refused(settings: Any, pruning: Any, quantization: Any, epochs: int, message: str) -> None:
    training = Training(epochs=epochs)
    with pytest.raises(ConfigError, match=message):
        settings.check(pruning, quantization, training)
    FITCompress().check(pruning, quantization, training)


def test_sections_that_go_together_are_accepted() -> None:
    BITS.check(DST(), FIXED, Training())
    BOTH.check(NoPruning(), FIXED, Training())
    replace(BOTH, optimize_quantization=False).check(NoPruning(), Quantization(enable_quantization=False), Training())


def test_switched_off_it_leaves_everything_as_it_is() -> None:
    method, model = DST(), pquant.compress(mlp(), None, FIXED)
    assert FITCompress().masks(method) is method and BITS.masks(method) is method
    assert FITCompress().prepare(model) == [] and not model[0].weight_quantizer.is_float


def test_pruning_alone_works_on_a_float_network() -> None:
    settings = replace(BOTH, optimize_quantization=False, compression_goal=0.3)
    model = compressed(settings, Quantization(enable_quantization=False))
    result = settings.apply(model, data(), F.cross_entropy)
    assert {entry.bits for entry in result.layers.values()} == {32.0} and result.compression <= 0.3
    pquant.set_stage(model, Stage.TRAIN)
    assert pquant.sparsity(model) == pytest.approx(1 - result.compression)


def test_layers_excluded_from_pruning_keep_all_their_weights() -> None:
    result = found(BOTH, disable_pruning_for_layers=["0"])
    assert result.layers["0"].sparsity == 0 < result.layers["3"].sparsity
    model = compressed(BOTH, disable_pruning_for_layers=["0"])
    BOTH.apply(model, data(), F.cross_entropy)
    pquant.set_stage(model, Stage.TRAIN)
    assert not model[0].prunable and model[3].pruner.mask.logical_not().any()
    assert isinstance(BOTH.masks(NoPruning()), SearchedMask)
    assert found(BOTH, disable_pruning_for_layers=["*"]).pruning_share == 0


def test_layers_with_bits_of_their_own_or_none_are_not_searched() -> None:
    rules = {"0": {"weight": {"f": 5}}, "3": {"weight": {"enable": False}}, "5": {"weight": {"round_mode": "TRN"}}}
    result = found(replace(BITS, compression_goal=0.5), replace(FIXED, layer_specific=rules))
    assert result.layers["0"].bits == 6 and result.layers["0"].format is None
    assert result.layers["3"].bits == 32 and result.layers["3"].format is None
    assert set(result.layer_specific) == {"0", "3", "5"} and result.layer_specific["0"] == rules["0"]
    if result.layers["5"].format:
        assert result.layer_specific["5"]["weight"]["round_mode"] == "TRN"


def test_automatic_integer_bits_work_and_calibration_leaves_the_result_alone() -> None:
    settings = replace(BITS, optimize_pruning=False)
    quantization = replace(FIXED, default_weight_integer_bits="auto", default_data_integer_bits="auto")
    model = compressed(settings, quantization)
    result = settings.apply(model, data(), F.cross_entropy)
    pquant.calibrate(model, [data().tensors[0]])
    for name, layer in weight_layers(model).items():
        assert result.layers[name].format is None or float(layer.weight_quantizer.width()) == result.layers[name].bits


def test_shared_weights_are_searched_once() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
    net[2].weight = net[0].weight
    model = compressed(BOTH, net=pretrained(net))
    result = BOTH.apply(model, data(), F.cross_entropy)
    assert set(result.layers) == {"0", "4"} and model[0].weight_quantizer is model[2].weight_quantizer


def test_what_is_out_of_reach_is_said_before_and_after_the_search(caplog: pytest.LogCaptureFixture) -> None:
    settings = replace(BITS, compression_goal=0.05)
    model = pquant.compress(mlp(), settings.masks(NoPruning()), FIXED, data().tensors[0][:4])
    assert settings.prepare(model) == ["FITCompress.compression_goal 0.05 is out of reach: the schedules end at 0.09375 of the float32 size"]
    with caplog.at_level(logging.WARNING):
        result = settings.search(model, data(), F.cross_entropy)
    assert "cannot reach compression_goal 0.05" in caplog.text and "0.0938" in caplog.text
    assert not result.reached and result.compression == 3 / 32
    assert replace(BITS, compression_goal=0.0938).prepare(pquant.compress(mlp(), None, FIXED)) == []
    pruning = replace(BOTH, optimize_quantization=False, pruning_schedule=PruningSchedule(end=-0.5), compression_goal=0.01)
    assert "out of reach" in pruning.prepare(pquant.compress(mlp(), pruning.masks(NoPruning()), FIXED))[0]


# The result as a file.


def test_a_result_is_read_back_from_its_file(tmp_path: Path) -> None:
    result = found(BOTH)
    write_json(tmp_path / "fitcompress.json", result.as_json())
    assert Result.read(tmp_path / "fitcompress.json") == result


def test_a_result_given_replaces_the_search_and_gives_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searched = compressed(BOTH)
    result = BOTH.apply(searched, data(), F.cross_entropy)
    write_json(tmp_path / "saved.json", result.as_json())
    again = replace(BOTH, result=str(tmp_path / "saved.json"))
    monkeypatch.setattr(FITCompress, "search", None)
    model = compressed(again)
    assert again.apply(model, data(), F.cross_entropy) == result
    ours, theirs = model.state_dict(), searched.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(v, theirs[n]) for n, v in ours.items() if isinstance(v, torch.Tensor))


def test_the_bits_work_as_layer_rules_without_a_search() -> None:
    rules = {"3": {"input": {"f": 6}}, "*": {"output": {"enable": True, "k": True}}}
    quantization = replace(FIXED, layer_specific=rules)
    model = compressed(BITS, quantization)
    result = BITS.apply(model, data(), F.cross_entropy)
    assert result.layer_specific["3"]["input"] == {"f": 6} and result.layer_specific["0"]["output"] == {"enable": True, "k": True}
    direct = pquant.compress(mlp(), None, replace(FIXED, layer_specific=result.layer_specific), data().tensors[0][:4])
    x = data().tensors[0]
    pquant.set_stage(model, Stage.TRAIN)
    assert torch.equal(direct.eval()(x), model.eval()(x))


def test_layers_that_share_a_weight_have_the_same_rule() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 3))
    net[2].weight = net[0].weight
    result = found(replace(BITS, compression_goal=0.2), net=net)
    assert result.layer_specific["0"]["weight"] == result.layer_specific["2"]["weight"]
    direct = pquant.compress(net, None, replace(FIXED, layer_specific=result.layer_specific), data().tensors[0][:4])
    assert direct[2].weight_quantizer is direct[0].weight_quantizer


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"layers": {"0": {"bits": 3}}}', '{"layers": 3}'])
def test_a_file_that_is_no_result_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(ConfigError, match=r"FITCompress.result must be the fitcompress.json of an earlier run, got '.*bad.json'"):
        Result.read(tmp_path / "bad.json")


def test_a_result_of_another_model_is_refused(tmp_path: Path) -> None:
    saved = found(BITS).as_json()
    path = tmp_path / "saved.json"
    settings = replace(BITS, result=str(path))
    for change, message in (
        ({"9": saved["layers"]["0"], **saved["layers"]}, "unknown layer '9'"),
        ({name: entry for name, entry in saved["layers"].items() if name != "5"}, "layer '5' has 24 weights, and the file no such layer"),
        ({**saved["layers"], "0": {**saved["layers"]["0"], "weights": 7}}, "layer '0' has 192 weights, and the file 7 weights there"),
    ):
        path.write_text(json.dumps({**saved, "layers": change}))
        with pytest.raises(ConfigError, match=message):
            settings.prepare(pquant.compress(mlp(), None, FIXED))
