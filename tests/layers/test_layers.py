"""Every kind of layer, alone: equal to torch's when switched off, unmoved by finalize, saved and copied at any stage, and its arithmetic."""

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import pquant
from pquant.layers import (
    Mean,
    PQActivation,
    PQAvgPool1d,
    PQAvgPool2d,
    PQAvgPool3d,
    PQBatchNorm1d,
    PQBatchNorm2d,
    PQConv1d,
    PQConv2d,
    PQConv3d,
    PQDense,
    Scale,
    ScaledSoftmax,
)
from pquant.layers.norm import ChannelAffine
from pquant.pruning import DST, NoPruning, PruningMethod, Wanda
from pquant.quantization import FixedPointQuantizer, NoQuantizer, Quantization, TensorFormat, fixed_point
from pquant.training.optimizer import parameter_groups

from ..formats import SEVEN_BITS as BITS

FIXED = Quantization(**BITS)
AUTO = {"default_data_integer_bits": "auto", "default_weight_integer_bits": "auto", "data_granularity": "per_channel", "granularity": "per_channel"}
QUANTIZATIONS = {
    "off": Quantization(enable_quantization=False),
    "fixed": FIXED,
    "auto by channel": Quantization(**(BITS | AUTO), round_mode="RND_CONV", overflow_mode_data="WRAP", overflow_mode_parameters="SAT_SYM"),
    "pruned after": Quantization(**BITS, pruning_first=False, quantize_output=False, use_relu_multiplier=False),
    "trained": Quantization(**BITS, use_hgq=True, hgq_beta=1e-6, hgq_gamma=1e-6, granularity="per_weight", data_granularity="per_channel"),
    "trained, wrapping": Quantization(**BITS, use_hgq=True, overflow_mode_data="WRAP", overflow_mode_parameters="WRAP", use_relu_multiplier=False),
}
PRUNINGS: dict[str, PruningMethod] = {
    "none": NoPruning(),
    "dst": DST(threshold_init=0.05, threshold_type="weightwise"),
    "wanda": Wanda(sparsity=0.5, t_delta=2, t_start_collecting_batch=0),
    "wanda, window open": Wanda(sparsity=0.5, t_delta=1000, t_start_collecting_batch=0),
}
WEIGHTED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dense": (lambda: nn.Linear(6, 4), (6,)),
    "dense without bias": (lambda: nn.Linear(6, 4, bias=False), (6,)),
    "dense on a sequence": (lambda: nn.Linear(6, 4), (3, 6)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (4, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 4, 3, padding="same", dilation=2), (3, 6, 6)),
    "conv2d circular": (lambda: nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular", bias=False), (2, 5, 5)),
    "conv2d by channel": (lambda: nn.Conv2d(3, 6, 2, groups=3), (3, 5, 4)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (2, 3, 4, 3)),
    "transposed conv1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (4, 5)),
    "transposed conv2d": (lambda: nn.ConvTranspose2d(3, 4, (2, 3), dilation=2, bias=False), (3, 4, 3)),
    "transposed conv3d": (lambda: nn.ConvTranspose3d(2, 3, 2, stride=2), (2, 2, 3, 2)),
}
OTHERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "batch norm 1d": (lambda: nn.BatchNorm1d(4), (4,)),
    "batch norm 1d on positions": (lambda: nn.BatchNorm1d(4, momentum=None), (4, 5)),
    "batch norm 2d": (lambda: nn.BatchNorm2d(3, eps=1e-3, momentum=0.3), (3, 4, 4)),
    "batch norm 3d without affine": (lambda: nn.BatchNorm3d(2, affine=False), (2, 3, 3, 2)),
    "average pool 1d": (lambda: nn.AvgPool1d(3, stride=2, padding=1), (2, 8)),
    "average pool 2d": (lambda: nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False), (2, 5, 5)),
    "average pool 3d": (lambda: nn.AvgPool3d(2, divisor_override=4), (2, 4, 4, 2)),
    "relu": (lambda: nn.ReLU(), (5,)),
    "relu in place": (lambda: nn.ReLU(inplace=True), (2, 5)),
    "tanh": (lambda: nn.Tanh(), (5, 2, 2)),
    "gelu": (lambda: nn.GELU("tanh"), (3, 4)),
    "silu in place": (lambda: nn.SiLU(inplace=True), (5,)),
    "prelu": (lambda: nn.PReLU(4, init=0.3), (4, 3)),
    "max pool 1d": (lambda: nn.MaxPool1d(3, stride=2, padding=1), (2, 8)),
    "max pool 2d": (lambda: nn.MaxPool2d(2, ceil_mode=True, dilation=2), (2, 7, 5)),
    "max pool 3d": (lambda: nn.MaxPool3d(2), (2, 4, 4, 2)),
    "layer norm": (lambda: nn.LayerNorm(6), (6,)),
    "layer norm over two axes": (lambda: nn.LayerNorm((4, 5), bias=False), (3, 4, 5)),
    "layer norm without weight": (lambda: nn.LayerNorm(6, elementwise_affine=False), (3, 6)),
    "rms norm": (lambda: nn.RMSNorm(6), (3, 6)),
    "group norm": (lambda: nn.GroupNorm(2, 6, eps=1e-3), (6, 3, 2)),
    "instance norm 1d": (lambda: nn.InstanceNorm1d(3, affine=True), (3, 5)),
    "instance norm 2d": (lambda: nn.InstanceNorm2d(3), (3, 4, 4)),
    "instance norm 3d": (lambda: nn.InstanceNorm3d(2, affine=True), (2, 2, 3, 2)),
    "softmax": (lambda: nn.Softmax(-1), (5,)),
    "softmax of channels": (lambda: nn.Softmax(1), (3, 4)),
    "scaled softmax": (lambda: ScaledSoftmax(-1, 0.35), (2, 5)),
    "factor": (lambda: Scale(0.3), (5,)),
    "quotient": (lambda: Scale(3, divides=True), (5,)),
    "mean": (lambda: Mean(1), (3, 4)),
}
KINDS = WEIGHTED | OTHERS


def make(kind: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    factory, shape = KINDS[kind]
    layer = factory()
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.3, 4)
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
    return layer, torch.randn(8, *shape) * 2


def steps(model: nn.Module, x: Tensor, count: int, rate: float = 0.05) -> None:
    model.train()
    groups = [group for group in parameter_groups(model) if group["params"]]
    optimizer = torch.optim.SGD(groups, rate) if groups else None
    for _ in range(count):
        loss = model(x.clone()).square().mean() + pquant.penalty(model)
        if optimizer is not None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        pquant.on_batch_end(model)


def at_each_stage(model: nn.Module, x: Tensor, rate: float = 0.05) -> Any:
    """Yield the stages that ``model`` goes through, after a few training steps in each."""
    for stage in pquant.Stage:
        if stage is pquant.Stage.TRAIN:
            pquant.set_stage(model, stage)
            yield "train begins"
        pquant.set_stage(model, stage)
        steps(model, x, 3, rate)
        yield stage.value


def gradients(model: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    x = x.clone().requires_grad_()
    y = model(x.clone())
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return y.detach(), [x.grad, *(parameter.grad for _, parameter in sorted(model.named_parameters()) if parameter.requires_grad)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_switched_off_a_layer_is_torchs_bit_for_bit(kind: str, training: bool) -> None:
    layer, x = make(kind)
    layer.train(training)
    for model in (pquant.compress(layer), pquant.compress(layer, NoPruning(), QUANTIZATIONS["off"], x)):
        twin = copy.deepcopy(layer)
        assert model.training is training and model.name == ""
        for _ in range(3):
            (y, grads), (expected, expected_grads) = gradients(model, x), gradients(twin, x)
            assert torch.equal(y, expected)
            assert all(map(torch.equal, grads, expected_grads))
        theirs = twin.state_dict()
        assert {name: value for name, value in model.state_dict().items() if name in theirs}.keys() == theirs.keys()
        assert all(torch.equal(model.state_dict()[name], value) for name, value in theirs.items())


@pytest.mark.parametrize("pruning", ["dst", "wanda"])
@pytest.mark.parametrize("kind", WEIGHTED)
def test_pruning_alone_changes_nothing_before_its_stage(kind: str, pruning: str) -> None:
    layer, x = make(kind)
    model = pquant.compress(layer, PRUNINGS[pruning])
    for _ in range(3):
        y, grads = gradients(model, x)
        expected, expected_grads = gradients(layer, x)
        assert torch.equal(y, expected) and torch.equal(grads[0], expected_grads[0])
    assert torch.equal(model.eval()(x), layer(x))


def combinations() -> Any:
    """Yield all of kind, pruning and quantization, those that differ from others in two ways as slow ones."""
    for kind, pruning, quantization in itertools.product(KINDS, PRUNINGS, QUANTIZATIONS):
        usual = (quantization == "fixed") + (pruning == "dst") + (kind in ("dense", "conv1d"))
        if kind in WEIGHTED or pruning == "none":
            yield pytest.param(kind, pruning, quantization, marks=[] if usual > 1 or kind in OTHERS else [pytest.mark.slow])


@pytest.mark.parametrize(("kind", "pruning", "quantization"), [*combinations()])
def test_finalizing_saving_and_copying_move_no_output_at_any_stage(kind: str, pruning: str, quantization: str) -> None:
    layer, x = make(kind)
    model = pquant.compress(layer, PRUNINGS[pruning], QUANTIZATIONS[quantization], x)
    test = torch.randn(16, *x.shape[1:]) * 3
    for stage in at_each_stage(model, x):
        model.eval()
        y = model(test.clone())
        final = pquant.finalize(model)
        assert torch.equal(final(test.clone()), y), stage
        assert torch.equal(copy.deepcopy(model)(test.clone()), y), stage
        fresh = pquant.compress(make(kind, seed=1)[0], PRUNINGS[pruning], QUANTIZATIONS[quantization], x)
        fresh.load_state_dict(model.state_dict())
        assert torch.equal(fresh.eval()(test.clone()), y), stage
        assert torch.equal(model(test.clone()), y), "the model itself is left as it was"
        assert not any(parameter.requires_grad for parameter in final.parameters())
    assert torch.equal(pquant.finalize(final)(test.clone()), y)
    again = pquant.finalize(fresh)
    again.load_state_dict(final.state_dict())
    assert torch.equal(again(test.clone()), y)


@pytest.mark.parametrize("quantization", ["off", "fixed", "pruned after", "trained"])
@pytest.mark.parametrize("pruning", ["dst", "wanda"])
@pytest.mark.parametrize("kind", ["dense", "conv2d by channel"])
def test_entering_fine_tuning_moves_no_output(kind: str, pruning: str, quantization: str) -> None:
    layer, x = make(kind)
    model = pquant.compress(layer, PRUNINGS[pruning], QUANTIZATIONS[quantization], x)
    pquant.set_stage(model, pquant.Stage.TRAIN)
    steps(model, x, 3)
    y, zeros = model.eval()(x), pquant.sparsity(model)
    pquant.set_stage(model, pquant.Stage.FINETUNE)
    assert torch.equal(model(x), y) and pquant.sparsity(model) == zeros > 0
    assert torch.equal(model.train()(x), y) or quantization == "trained", "training sees the same weights"
    mask = model.pruner.mask.clone()
    steps(model, x, 3)
    assert torch.equal(model.pruner.mask, mask) and not model.finalized_parameters()[0][~mask].any()


@pytest.mark.parametrize("quantization", [name for name in QUANTIZATIONS if name != "off"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_parameter_is_dead_and_all_are_there_from_the_start(kind: str, quantization: str) -> None:
    layer, x = make(kind)
    model = pquant.compress(layer, DST(threshold_init=0.05, alpha=1e-3), QUANTIZATIONS[quantization], x)
    pquant.set_stage(model, pquant.Stage.TRAIN)
    known = {id(parameter) for group in parameter_groups(model) for parameter in group["params"]}
    names = sorted(name for name, _ in model.named_parameters())
    y = model(x.clone().requires_grad_() * 1)
    ((y * torch.randn_like(y)).sum() + pquant.penalty(model)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    pquant.set_stage(model, pquant.Stage.FINETUNE)
    model.eval()(x)
    assert names == sorted(name for name, _ in model.named_parameters())
    assert known == {id(parameter) for parameter in model.parameters()}
    if "trained" not in quantization:
        own = {name for name, _ in layer.named_parameters()} | ({"pruner.threshold"} if kind in WEIGHTED else set())
        assert set(names) - {"multiplier"} == own


@pytest.mark.parametrize("kind", KINDS)
def test_in_many_bits_a_layer_is_close_to_torchs(kind: str) -> None:
    layer, x = make(kind)
    layer.eval()
    bits = BITS | {"default_data_integer_bits": 5, "default_data_fractional_bits": 14}
    bits |= {"default_weight_integer_bits": 3, "default_weight_fractional_bits": 14, "use_real_tanh": True}
    model = pquant.compress(layer, None, Quantization(**bits), x)
    (y, grads), (expected, expected_grads) = gradients(model, x), gradients(layer, x)
    torch.testing.assert_close(y, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(grads[0], expected_grads[0], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("kind", WEIGHTED)
def test_what_a_layer_computes_with_is_on_the_grid_and_pruned(kind: str) -> None:
    layer, x = make(kind)
    model = pquant.compress(layer, DST(threshold_init=0.1), FIXED, x)
    pquant.set_stage(model, pquant.Stage.TRAIN)
    weight, bias = model.effective()
    weight = model.stored(weight)
    expected = fixed_point(layer.weight * (layer.weight.abs() > 0.1), 1, 0, 6)
    assert torch.equal(weight, expected) and torch.equal(pquant.finalize(model).weight, expected)
    assert bias is None or torch.equal(bias, fixed_point(layer.bias, 1, 0, 6))
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        twin.weight.copy_(weight)
        if bias is not None:
            twin.bias.copy_(bias)
    assert torch.equal(model(x), fixed_point(twin(fixed_point(x, 1, 2, 4)), 1, 2, 4))


DIRECT: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "dense": (lambda **settings: nn.Sequential(PQDense(6, 8, **settings), nn.ReLU(), PQDense(8, 3, bias=False, **settings)), (6,)),
    "conv1d": (lambda **settings: nn.Sequential(PQConv1d(2, 4, 3, padding=1, **settings), PQAvgPool1d(2, **settings)), (2, 8)),
    "conv2d": (lambda **settings: nn.Sequential(PQConv2d(2, 4, 3, **settings), PQBatchNorm2d(4, **settings), PQAvgPool2d(2, **settings)), (2, 8, 8)),
    "conv3d": (lambda **settings: nn.Sequential(PQConv3d(2, 4, kernel_size=2, **settings), PQAvgPool3d(2, **settings)), (2, 5, 5, 5)),
}


@pytest.mark.parametrize("pruning", PRUNINGS)
@pytest.mark.parametrize("kind", DIRECT)
def test_layers_are_built_directly_too(kind: str, pruning: str) -> None:
    torch.manual_seed(0)
    build, shape = DIRECT[kind]
    x, method = torch.randn(8, *shape), PRUNINGS[pruning]
    model = build(pruning=method, quantization=FIXED)
    float_model = build()
    assert torch.equal(pquant.finalize(float_model)(x), float_model.eval()(x))
    assert pquant.sparsity(model) < 0.2
    for _ in at_each_stage(model, x):
        y = model.eval()(x)
        assert torch.equal(pquant.finalize(model)(x), y)
        assert math.isfinite(pquant.penalty(model).detach())
    if pruning == "wanda":
        assert pquant.sparsity(model) == pytest.approx(0.5, abs=0.05)
    other = build(pruning=method, quantization=FIXED)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval()(x), model(x))


def test_a_layer_built_directly_is_the_layer_that_compress_makes() -> None:
    torch.manual_seed(0)
    direct = PQDense(16, 64, pruning=DST(), quantization=FIXED, name="fc")
    torch.manual_seed(0)
    converted = pquant.compress(nn.Linear(16, 64), DST(), FIXED)
    x = torch.randn(4, 16)
    assert torch.equal(direct(x), converted(x)) and direct.name == "fc"
    assert list(direct.state_dict()) == list(converted.state_dict())
    assert isinstance(direct, nn.Linear) and direct.in_features == 16
    assert PQConv2d(2, 4, 3, dtype=torch.float64, quantization=FIXED)(torch.randn(1, 2, 5, 5).double()).dtype == torch.float64


def test_a_batch_norm_in_training_is_close_to_the_float_one_and_tracks_the_same_statistics() -> None:
    fine = Quantization(**(BITS | {"default_weight_fractional_bits": 12}), quantize_input=False, quantize_output=False)
    for kind in ("batch norm 1d", "batch norm 1d on positions", "batch norm 2d", "batch norm 3d without affine"):
        layer, x = make(kind)
        model = pquant.compress(layer, None, fine)
        for _ in range(4):
            (y, grads), (expected, expected_grads) = gradients(model, x), gradients(layer, x)
            assert torch.allclose(y, expected, atol=3e-3)
            assert all(torch.allclose(a, b, rtol=2e-2, atol=2e-2) for a, b in zip(grads, expected_grads, strict=True))
            x = x + 0.3
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(getattr(model, name), getattr(layer, name))
        assert torch.allclose(model.eval()(x), layer.eval()(x), atol=1e-2)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "batch norm" in kind])
def test_a_batch_norm_deploys_a_scale_and_a_shift_of_few_bits(kind: str) -> None:
    layer, x = make(kind)
    final = pquant.finalize(pquant.compress(layer, None, FIXED, x))
    assert isinstance(final, ChannelAffine)
    for values, quantizer in ((final.weight, final.weight_quantizer), (final.bias, final.bias_quantizer)):
        k, i, f = quantizer.format()
        assert torch.equal(k + i + f, torch.full_like(i, 7))
        assert torch.equal(fixed_point(values, k, i, f), values)
        scaled = values * torch.exp2(f)
        assert torch.equal(scaled, scaled.round()) and bool((scaled.abs() <= 2**6).all())
    y = fixed_point(x, 1, 2, 4)
    by_channel = (-1, *(1 for _ in x.shape[2:]))
    assert torch.equal(final(x), fixed_point(y * final.weight.view(by_channel) + final.bias.view(by_channel), 1, 2, 4))
    sigma = (layer.running_var + layer.eps).sqrt()
    gamma = 1 if layer.weight is None else layer.weight
    assert torch.allclose(final.weight, gamma / sigma, rtol=2**-5)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**30),
    bits=st.integers(0, 12),
    k=st.booleans(),
    round_mode=st.sampled_from(["RND", "TRN", "RND_CONV", "RND_ZERO"]),
    overflow_mode=st.sampled_from(["SAT", "SAT_SYM", "WRAP"]),
)
def test_a_batch_norm_is_moved_by_a_loop_as_by_tensors(seed: int, bits: int, k: bool, round_mode: str, overflow_mode: str) -> None:
    torch.manual_seed(seed)
    section = Quantization(
        default_weight_keep_negatives=k, default_weight_fractional_bits=bits, round_mode=round_mode, overflow_mode_parameters=overflow_mode
    )
    model = pquant.compress(nn.BatchNorm2d(9), None, section, torch.randn(2, 9, 2, 2)).train()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([0.0, -0.5, 1.0, -1.0, 1e-12, -3e-39, 7.0, 0.999999, -0.249999]) * 2.0 ** torch.randint(-3, 4, ()))
        model.bias.normal_()
        model.running_mean.normal_()
        model.running_var.copy_(torch.rand(9) * torch.randint(0, 2, (9,)) + 1 - model.eps * torch.randint(0, 2, (9,)))
    scale, shift = model.scale_and_shift()
    expected = scale * torch.sqrt(model.running_var + model.eps), shift + model.running_mean * scale
    moved = model.moved()
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(moved, expected, strict=True))
    grads = torch.randn(9), torch.randn(9)
    mine, theirs = (torch.autograd.grad(given, (model.weight, model.bias), grads) for given in (moved, expected))
    torch.testing.assert_close(mine, theirs)


def test_one_of_scale_and_shift_may_stay_float() -> None:
    layer, x = make("batch norm 2d")
    model = pquant.compress(layer, None, Quantization(**BITS, layer_specific={"*": {"bias": {"enable": False}}}), x)
    assert isinstance(model.bias_quantizer, NoQuantizer)
    scale, shift = model.scale_and_shift()
    assert torch.equal(shift, layer.bias - layer.running_mean * scale)
    assert torch.equal(pquant.finalize(model)(x), model.eval()(x))
    steps(model, x, 2)


@pytest.mark.parametrize("use_hgq", [False, True])
def test_a_quantized_relu_has_no_negatives_whatever_feeds_it(use_hgq: bool) -> None:
    for multiplier in (False, True):
        for outputs in (False, True):
            section = Quantization(**BITS, use_hgq=use_hgq, use_relu_multiplier=multiplier, quantize_output=outputs)
            model = pquant.compress(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), None, section, torch.randn(4, 4))
            x = torch.randn(32, 4) * 4
            seen = model[0](x)
            y = model(x)
            assert bool((seen < 0).any()) and bool((y >= 0).all())
            assert torch.equal(y, fixed_point(seen, 0, 2, 4))


def test_a_relu_that_does_not_saturate_is_still_a_relu() -> None:
    model = pquant.compress(nn.ReLU(), None, Quantization(**BITS, use_relu_multiplier=False, overflow_mode_data="WRAP"))
    assert model(torch.tensor([-1.0, 1.0, 4.5])).tolist() == [0, 1, 0]
    off = pquant.compress(nn.ReLU(), None, Quantization(**BITS, quantize_input=False, quantize_output=False))
    assert off(torch.tensor([-1.0, 1.3])).tolist() == [0, pytest.approx(1.3)] and off.multiplier is None


@settings(max_examples=50)
@given(st.floats(-3, 3, width=32), st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=12))
def test_the_relu_multiplier_is_a_shift_with_this_gradient(exponent: float, values: list[float]) -> None:
    model = pquant.compress(nn.ReLU(), None, Quantization(**BITS, layer_specific={"*": {"output": {"enable": False}}}))
    with torch.no_grad():
        model.multiplier.fill_(exponent)
    x, g = torch.tensor(values, requires_grad=True), torch.linspace(-1, 2, len(values))
    factor = 2.0 ** torch.round(torch.tensor(exponent))
    q = fixed_point(x.detach(), 1, 2, 4)
    y = model(x)
    y.backward(g)
    assert torch.equal(y, q.relu() * factor)
    inside = (x >= -4) & (x <= 4 - 2.0**-4)
    assert torch.equal(x.grad, g * factor * (q > 0) * inside)
    assert torch.allclose(model.multiplier.grad, math.log(2) * (g * y.detach()).sum(), rtol=1e-5, atol=1e-5)
    assert torch.equal(pquant.finalize(model)(x), y) and not pquant.finalize(model).multiplier.requires_grad


@pytest.mark.parametrize("kind", ["relu", "tanh"])
def test_activations_are_torchs_when_nothing_of_them_is_quantized(kind: str) -> None:
    x = torch.randn(50)
    expected = x.relu() if kind == "relu" else x.tanh()
    for section in (None, QUANTIZATIONS["off"], Quantization(**BITS, quantize_input=False, quantize_output=False)):
        layer = PQActivation(kind, section)
        assert torch.equal(layer(x), expected) and not list(layer.parameters()) and repr(layer).startswith(f"PQActivation(\n  {kind}")


def test_tanh_is_hard_unless_the_real_one_is_asked_for() -> None:
    x = torch.linspace(-3, 3, 101, requires_grad=True)
    hard, real = (PQActivation("tanh", Quantization(**BITS, use_real_tanh=real, quantize_output=False)) for real in (False, True))
    q = fixed_point(x.detach(), 1, 2, 4)
    assert torch.equal(hard(x), q.clamp(-1, 1)) and torch.equal(real(x), torch.tanh(q))
    hard(x).sum().backward()
    assert torch.equal(x.grad, (q.abs() < 1).float())
    both = PQActivation("tanh", Quantization(**BITS, use_real_tanh=True))
    assert torch.equal(both(x), fixed_point(torch.tanh(q), 1, 2, 4))


def test_pools_average_quantized_values() -> None:
    x = torch.randn(2, 3, 8)
    model = PQAvgPool1d(4, quantization=FIXED)
    assert torch.equal(model(x), fixed_point(F.avg_pool1d(fixed_point(x, 1, 2, 4), 4), 1, 2, 4))


def test_errors_name_the_layer() -> None:
    net = nn.Sequential(nn.Linear(6, 4), nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)))
    with pytest.raises(pquant.layers.base.ConfigError, match=r"layer '1.0': Wanda.M must divide the 4 inputs of each row, got 3"):
        pquant.compress(net, Wanda(N=1, M=3))
    with pytest.raises(pquant.layers.base.ConfigError, match=r"layer '1.1': data quantized per_weight needs one shape"):
        pquant.compress(net, None, Quantization(layer_specific={"1.1": {"input": {"granularity": "per_weight"}}}))


def test_batch_norms_of_any_input() -> None:
    layer = PQBatchNorm1d(3, quantization=FIXED)
    assert layer(torch.randn(4, 3)).shape == (4, 3) and layer(torch.randn(4, 3, 5)).shape == (4, 3, 5)
    assert layer.eval()(torch.randn(1, 3)).shape == (1, 3)


def test_a_quantizer_that_changes_after_a_forward_is_heard() -> None:
    x = torch.linspace(-1, 1, 24).view(8, 3)
    layers = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    model = pquant.compress(layers, None, replace(FIXED, quantize_output=True), x).eval()
    first, last = model[0], model[2]

    def coarse(change: Callable[[], object]) -> None:
        before = model(x)
        change()
        assert not torch.equal(model(x), before)

    coarse(lambda: setattr(last, "input_quantizer", FixedPointQuantizer(TensorFormat(i=3, f=0))))
    coarse(lambda: first.output_quantizer.fix(1, 3, -1))
    coarse(lambda: setattr(first, "output_quantizer", NoQuantizer()))
    coarse(lambda: setattr(last, "output_quantizer", NoQuantizer()))
