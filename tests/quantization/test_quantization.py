"""The quantization section: every field does something, and rules by layer say what they do not understand."""

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pquant
from pquant.errors import ConfigError
from pquant.pruning import DST
from pquant.quantization import FixedPointQuantizer, NoQuantizer, Quantization
from pquant.quantization.hgq import HGQQuantizer
from pquant.quantization.quantizer import TensorFormat

from ..formats import SIX_BITS

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)) * 2


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4))


def build(**changes: Any) -> nn.Module:
    model = pquant.compress(net(), DST(threshold_init=0.05), Quantization(**(SIX_BITS | changes)), X)
    pquant.set_stage(model, pquant.Stage.TRAIN, pquant.Horizon(epochs=4, steps_per_epoch=1))
    return model


def behaviour(**changes: Any) -> list[Tensor]:
    """Return what a model does: outputs, gradients of data, penalty now and an epoch later, EBOPs, learning rates."""
    model, x = build(**changes), X.clone().requires_grad_()
    y = model(x)
    y.square().sum().backward()
    penalties = [pquant.penalty(model).detach()]
    pquant.on_epoch_end(model)
    penalties.append(pquant.penalty(model).detach())
    rates = torch.tensor([group.get("lr", 0.0) for group in pquant.parameter_groups(model)])
    counts = torch.tensor([pquant.ebops(model), len(list(model.parameters()))])
    return [y.detach(), model.eval()(X).detach(), x.grad, *penalties, counts, rates]


HGQ = {"use_hgq": True}
EFFECTS: dict[str, tuple[dict[str, Any], Any]] = {
    "default_data_keep_negatives": ({}, False),
    "default_data_integer_bits": ({}, 0),
    "default_data_fractional_bits": ({}, 1),
    "default_weight_keep_negatives": ({}, False),
    "default_weight_integer_bits": ({}, -3),
    "default_weight_fractional_bits": ({}, 3),
    "quantize_input": ({}, False),
    "quantize_output": ({}, False),
    "enable_quantization": ({}, False),
    "hgq_gamma": (HGQ, 1e-3),
    "hgq_beta": (HGQ, 1e-3),
    "hgq_beta_schedule": (HGQ, [[0, 1e-3], [2, 1e-1]]),
    "hgq_lr": (HGQ, 1e-2),
    "target_ebops": (HGQ | {"hgq_beta": 1e-3}, 500),
    "target_luts": (HGQ | {"hgq_beta": 1e-3}, 500),
    "target_share": (HGQ | {"hgq_beta": 1e-6, "target_ebops": 4500}, 0.1),
    "layer_specific": ({}, {"2": {"weight": {"f": 2}}}),
    "use_hgq": ({}, True),
    "use_real_tanh": ({}, True),
    "use_relu_multiplier": ({}, False),
    "overflow_mode_data": ({"default_data_integer_bits": 0}, "WRAP"),
    "overflow_mode_parameters": ({"default_weight_integer_bits": -3}, "WRAP"),
    "round_mode": ({}, "TRN"),
    "granularity": (HGQ | {"hgq_gamma": 1e-3}, "per_weight"),
    "data_granularity": ({"default_data_integer_bits": "auto"}, "per_channel"),
    "min_frac_bits": ({"dynamic_data_quantization": True}, 3),
    "dynamic_data_quantization": ({}, True),
    "pruning_first": ({}, False),
}


def test_all_fields_are_tested() -> None:
    assert set(EFFECTS) == {field.name for field in fields(Quantization)}


@pytest.mark.parametrize("field", EFFECTS)
def test_every_field_has_an_effect(field: str) -> None:
    others, value = EFFECTS[field]
    base, again, changed = behaviour(**others), behaviour(**others), behaviour(**others, **{field: value})
    assert all(map(torch.equal, base, again)), "the comparison is of settings alone"
    assert not all(map(torch.equal, base, changed))


def test_the_defaults_are_those_of_the_specification_and_leave_nothing() -> None:
    given = Quantization()
    assert (given.default_data_keep_negatives, given.default_data_integer_bits, given.default_data_fractional_bits) == (False, 0, 0)
    assert (given.default_weight_keep_negatives, given.default_weight_integer_bits, given.default_weight_fractional_bits) == (False, 0, 0)
    assert given.quantize_input and given.quantize_output and given.enable_quantization and given.use_relu_multiplier
    assert (given.hgq_gamma, given.hgq_beta, given.layer_specific, given.use_hgq, given.use_real_tanh) == (0.0, 0.0, {}, False, False)
    assert (given.overflow_mode_data, given.overflow_mode_parameters, given.round_mode) == ("SAT", "SAT", "RND")
    assert not pquant.compress(net(), quantization=given)(X).any()


def bits(quantizer: Any) -> tuple[Any, ...]:
    k, i, f = (int(value) for value in quantizer.format())
    return k, i, f, quantizer.round_mode, quantizer.overflow_mode


def test_bits_and_modes_reach_the_tensors_they_are_for() -> None:
    modes = {"round_mode": "RND_CONV", "overflow_mode_data": "WRAP", "overflow_mode_parameters": "SAT_SYM"}
    layer = build(**modes)[0]
    assert bits(layer.input_quantizer) == bits(layer.output_quantizer) == (1, 2, 3, "RND_CONV", "WRAP")
    assert bits(layer.weight_quantizer) == bits(layer.bias_quantizer) == (1, 0, 5, "RND_CONV", "SAT_SYM")


@pytest.mark.parametrize("where", ["input", "output"])
def test_inputs_and_outputs_are_switched_apart(where: str) -> None:
    for layer in build(**{f"quantize_{where}": False}):
        for tensor in ("input", "output"):
            assert isinstance(getattr(layer, f"{tensor}_quantizer"), NoQuantizer) == (tensor == where)


def test_switched_off_nothing_is_quantized() -> None:
    model = pquant.compress(net(), quantization=Quantization(**SIX_BITS, enable_quantization=False))
    assert torch.equal(model(X), net()(X))
    quantizers = [module for module in model.modules() if isinstance(module, (FixedPointQuantizer, HGQQuantizer))]
    assert not quantizers


@pytest.mark.parametrize(("granularity", "shapes"), [("per_tensor", ((), ())), ("per_channel", ((16, 1), (16,))), ("per_weight", ((16, 8), (16,)))])
@pytest.mark.parametrize("use_hgq", [False, True])
def test_granularity_is_the_shape_of_the_bits(granularity: str, shapes: tuple[Any, Any], use_hgq: bool) -> None:
    layer = build(granularity=granularity, use_hgq=use_hgq)[0]
    assert (layer.weight_quantizer.i.shape, layer.bias_quantizer.i.shape) == shapes
    assert layer.input_quantizer.i.shape == ()
    layer = build(data_granularity=granularity, use_hgq=use_hgq)[0]
    assert layer.weight_quantizer.i.shape == () and layer.output_quantizer.i.shape == (() if granularity == "per_tensor" else (16,))


def test_bits_by_channel_of_data_need_its_shape() -> None:
    by_channel = Quantization(**SIX_BITS, data_granularity="per_channel")
    with pytest.raises(ConfigError, match="layer '0': data quantized per_channel needs one shape: give compress an example_input"):
        pquant.compress(net(), quantization=by_channel)
    relu = nn.ReLU()
    shared = nn.Sequential(nn.Linear(8, 16), relu, nn.Linear(16, 4), relu)
    with pytest.raises(ConfigError, match=r"layer '1': .* needs one shape: is called with \(16,\), \(4,\): use one layer for each"):
        pquant.compress(shared, quantization=by_channel, example_input=X)
    with pytest.raises(ConfigError, match="layer '': "):
        pquant.compress(nn.Linear(8, 2), quantization=by_channel)
    off = Quantization(**SIX_BITS, data_granularity="per_channel", quantize_input=False, quantize_output=False, use_relu_multiplier=False)
    assert pquant.compress(shared, quantization=off)(X).shape == (64, 4)


def test_a_relu_shared_by_maps_of_several_sizes_has_bits_by_channel() -> None:
    relu = nn.ReLU()
    model = nn.Sequential(nn.Conv1d(2, 3, 1), relu, nn.MaxPool1d(2), nn.Conv1d(3, 3, 1), relu)
    by_channel = Quantization(**SIX_BITS, data_granularity="per_channel")
    assert pquant.compress(model, quantization=by_channel, example_input=torch.randn(2, 2, 8))[1].input_quantizer.i.shape == (3, 1)


def test_pruning_first_quantizes_what_is_left_and_otherwise_the_quantized_weight_is_pruned() -> None:
    coarse = {"default_weight_keep_negatives": True, "default_weight_fractional_bits": 1, "quantize_input": False, "quantize_output": False}
    for first, expected in ((True, [0.0, 0.5]), (False, [0.5, 0.5])):
        layer = nn.Linear(2, 1)
        nn.init._no_grad_fill_(layer.weight, 0.26)
        with torch.no_grad():
            layer.weight[0, 1] = 0.4
        model = pquant.compress(layer, DST(threshold_init=0.3), Quantization(**coarse, pruning_first=first))
        pquant.set_stage(model, pquant.Stage.TRAIN)
        assert model.effective()[0].tolist() == [expected]
        assert model.finalized_parameters()[0].tolist() == [expected]
        pquant.set_stage(model, pquant.Stage.FINETUNE)
        assert model.effective()[0].tolist() == [expected], "the frozen mask is the one that was seen"


def rules(**layers: Any) -> Quantization:
    return Quantization(**SIX_BITS, layer_specific=layers)


def test_the_first_rule_that_fits_wins() -> None:
    section = rules(**{"block.0": {"weight": {"f": 1}}, "block.*": {"weight": {"f": 2}, "input": {"k": False, "i": 7}}, "*": {"output": {"f": 4}}})
    assert section.formats("block.0").weight.f == 1 and section.formats("block.0").input.i == 2
    assert section.formats("block.1").weight.f == 2 and section.formats("block.1").input == TensorFormat(k=False, i=7, f=3)
    assert section.formats("block.1").bias.f == 5, "only what is named changes"
    assert section.formats("head").output.f == 4 and section.formats("head").weight.f == 5
    reverse = rules(**{"*": {"output": {"f": 4}}, "block.0": {"weight": {"f": 1}}})
    assert reverse.formats("block.0").weight.f == 5
    assert rules(a={"weight": {"f": 1}}).formats("A").weight.f == 5


@pytest.mark.parametrize("tensor", ["weight", "bias", "input", "output"])
@pytest.mark.parametrize(
    "change", [{"k": False}, {"i": 5}, {"i": "auto"}, {"f": 9}, {"round_mode": "TRN"}, {"overflow_mode": "WRAP"}, {"granularity": "per_weight"}]
)
def test_every_option_of_every_tensor_can_differ(tensor: str, change: dict[str, Any]) -> None:
    ((option, value),) = change.items()
    model = build(layer_specific={"0": {tensor: change}})
    formats = model[0].quantization.formats("0")
    assert getattr(getattr(formats, tensor), option) == value
    quantizer, others = getattr(model[0], f"{tensor}_quantizer"), model[2].quantization.formats("2")
    assert others == model[0].quantization.formats("4")
    if option in ("round_mode", "overflow_mode"):
        assert getattr(quantizer, option) == value
    elif option == "granularity":
        assert quantizer.i.shape == {"weight": (16, 8), "bias": (16,), "input": (8,), "output": (16,)}[tensor]
    elif value != "auto":
        assert int(getattr(quantizer, option)) == int(value)
    else:
        assert quantizer.auto and quantizer.calibrated


def test_layers_and_tensors_are_switched_by_rules() -> None:
    off = build(layer_specific={"0": {"enable_quantization": False}, "2": {"weight": {"enable": False}}})
    assert all(isinstance(getattr(off[0], f"{tensor}_quantizer"), NoQuantizer) for tensor in ("weight", "bias", "input", "output"))
    assert isinstance(off[2].weight_quantizer, NoQuantizer) and isinstance(off[2].bias_quantizer, FixedPointQuantizer)
    on = build(enable_quantization=False, quantize_output=False, layer_specific={"0": {"enable_quantization": True}, "2": {"bias": {"enable": True}}})
    assert [isinstance(getattr(on[0], f"{tensor}_quantizer"), NoQuantizer) for tensor in ("weight", "bias", "input", "output")] == [False] * 3 + [
        True
    ]
    assert isinstance(on[2].weight_quantizer, NoQuantizer) and isinstance(on[2].bias_quantizer, FixedPointQuantizer)
    assert isinstance(on[4].bias_quantizer, NoQuantizer)
    for order in (("enable_quantization", "weight"), ("weight", "enable_quantization")):
        rule = {"enable_quantization": False, "weight": {"enable": True}}
        formats = rules(a={key: rule[key] for key in order}).formats("a")
        assert (formats.weight.enable, formats.bias.enable, formats.input.enable) == (True, False, False)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"wieght": {"f": 1}}, r"layer_specific\['a'\]: unknown setting 'wieght': did you mean 'weight'"),
        ({"enable_quant": False}, r"unknown setting 'enable_quant': did you mean 'enable_quantization'"),
        ({"weight": {"bits": 1}}, r"layer_specific\['a'\]\.weight: unknown setting 'bits'; valid: k, i, f, round_mode"),
        ({"weight": {"rond_mode": "TRN"}}, "unknown setting 'rond_mode': did you mean 'round_mode'"),
        ({"weight": {"round_mode": "TRM"}}, r"layer_specific\['a'\]\.weight: TensorFormat\.round_mode must be .* got 'TRM': did you mean 'TRN'"),
        ({"input": {"f": 99}}, r"layer_specific\['a'\]\.input: TensorFormat\.f must be in \[-32, 32\], got 99"),
        ({"input": {"k": 2}}, r"\.input: TensorFormat\.k must be true or false, got 2"),
        ({"weight": 3}, r"layer_specific\['a'\]\.weight must be a dictionary, got 3"),
        ({"enable_quantization": "no"}, r"layer_specific\['a'\]\.enable_quantization must be true or false, got 'no'"),
        (False, r"layer_specific\['a'\] must be a dictionary, got False"),
        ({3: {}}, "unknown setting '3'"),
    ],
)
def test_rules_say_what_they_do_not_understand(rule: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rules(a=rule)


def test_a_rule_for_no_layer_names_the_nearest_ones() -> None:
    model = nn.Sequential()
    model.add_module("fc1", nn.Linear(8, 4))
    model.add_module("fc2", nn.Linear(4, 2))
    with pytest.raises(ConfigError, match=r"Quantization.layer_specific: unknown layer 'fc3': did you mean 'fc\d'\? valid: fc1, fc2"):
        pquant.compress(model, quantization=rules(fc3={}))
    with pytest.raises(ConfigError, match=r"unknown layer 'conv\*'"):
        pquant.compress(model, quantization=rules(**{"conv*": {}}))
    pquant.compress(model, quantization=rules(**{"fc*": {}}))


@pytest.mark.parametrize("schedule", [[[0]], [[0, 1, 2]], [[0, -1]], [[-1, 1]], [[0, float("nan")]], [[0, float("inf")]], [[5, 1], [1, 2]], [3]])
def test_a_schedule_is_pairs_in_order(schedule: Any) -> None:
    with pytest.raises(ConfigError, match="Quantization.hgq_beta_schedule must be a list of"):
        Quantization(hgq_beta_schedule=schedule)


def test_bits_are_regularized_from_the_train_stage_on() -> None:
    model = pquant.compress(nn.Linear(3, 2), None, Quantization(**SIX_BITS, use_hgq=True, hgq_gamma=1e-3, hgq_beta=1e-4), X[:, :3])
    penalties = {}
    for stage in pquant.Stage:
        pquant.set_stage(model, stage)
        penalties[stage.value] = float(pquant.penalty(model).detach())
    ebops = 3 * 2 * 6 * 6 + 2 * 6
    assert penalties == pytest.approx({"pretrain": 0, "train": 1e-3 * 4 * 6 + 1e-4 * ebops, "finetune": 1e-3 * 4 * 6 + 1e-4 * ebops})


SEQUENCE = torch.randn(2, 6, 8)


def counted(**rule: Any) -> tuple[float, float, float]:
    """Return the EBOPs, the penalty and the first layer's EBOPs in the table of a net on a sequence of 6, whose first layer follows a rule."""
    section = Quantization(**(SIX_BITS | HGQ | {"hgq_beta": 1e-3, "layer_specific": {"0": rule} if rule else {}}))
    model = pquant.compress(net(), None, section, SEQUENCE)
    pquant.set_stage(model, pquant.Stage.TRAIN)
    return pquant.ebops(model), float(pquant.penalty(model).detach()), pquant.layer_table(model)[0]["ebops"]


@pytest.mark.parametrize(
    ("rule", "share"),
    [
        ({"ebops_factor": 0.5}, 0.5),
        ({"ebops_factor": 0}, 0),
        ({"parallelization": 1}, 1 / 6),
        ({"parallelization": 3}, 3 / 6),
        ({"parallelization": -1}, 1),
        ({"parallelization": None}, 1),
        ({"parallelization": 2, "ebops_factor": 6}, 2),
    ],
)
def test_a_layer_counts_what_is_built_times_its_factor(rule: dict[str, Any], share: float) -> None:
    (all_ebops, all_penalty, all_of_it), (ebops, penalty, of_it) = counted(), counted(**rule)
    assert of_it == pytest.approx(share * all_of_it)
    assert ebops == pytest.approx(all_ebops + (share - 1) * all_of_it)
    first = 6 * (8 * 16 * 6 * 6 + 16 * 6) * 1e-3
    assert penalty == pytest.approx(all_penalty + (share - 1) * first)


def test_what_is_built_counts_after_finalize_and_for_convolutions_norms_and_softmax() -> None:
    layers = [nn.Conv1d(3, 5, 3), nn.BatchNorm1d(5), nn.Softmax(1), nn.LayerNorm(7), nn.Flatten(), nn.Linear(35, 2)]
    found = []
    for rule in ({}, {"parallelization": 1}):
        section = Quantization(**(SIX_BITS | {"layer_specific": {"[0-3]": rule} if rule else {}}))
        model = pquant.compress(nn.Sequential(*layers), None, section, torch.randn(2, 3, 9))
        rows = [row["ebops"] for row in pquant.layer_table(model)]
        assert rows == [row["ebops"] for row in pquant.layer_table(pquant.finalize(model))]
        found.append(rows)
    everything, built = found
    assert built[:4] == pytest.approx([everything[0] / 7, everything[1] / 7, everything[2] / 7, everything[3] / 5])
    assert built[4:] == everything[4:] and all(everything[:4])


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"ebops_factor": -1}, r"layer_specific\['0'\]: Counting.ebops_factor must be in \[0, inf\), got -1.0"),
        ({"ebops_factor": "half"}, "Counting.ebops_factor must be a number, got 'half'"),
        ({"ebops_factor": float("nan")}, "Counting.ebops_factor must be .*, got nan"),
        ({"ebops_factor": True}, "Counting.ebops_factor must be a number, got True"),
        ({"parallelization": 0}, "Counting.parallelization must be at least 1, or null or -1 for all positions, got 0"),
        ({"parallelization": -2}, r"Counting.parallelization must be in \[-1, inf\), got -2"),
        ({"parallelization": 1.5}, "Counting.parallelization must be an integer or null, got 1.5"),
        ({"parallelisation": 1}, "unknown setting 'parallelisation'.*'parallelization'"),
    ],
)
def test_a_rule_that_cannot_count_is_refused(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Quantization(layer_specific={"0": rule})


def test_a_rule_that_builds_all_positions_anyway_is_refused() -> None:
    for limit, example in ((6, SEQUENCE), (1, X)):
        with pytest.raises(ConfigError, match=rf"\['0'\].parallelization = {limit} has no effect: layer '0' has {limit} position"):
            pquant.compress(net(), None, Quantization(layer_specific={"0": {"parallelization": limit}}), example)
    pquant.compress(net(), None, Quantization(layer_specific={"*": {"parallelization": 5}}), SEQUENCE)
