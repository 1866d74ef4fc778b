"""Trained bits: values, gradients, tracking, regularization, and what is left of them after finalize."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pquant
from pquant.errors import ConfigError, DivergedError
from pquant.metrics import Penalty
from pquant.pruning import DST, PruningMethod
from pquant.quantization import Quantization
from pquant.quantization.fixed_point import SATURATING, fixed_point
from pquant.quantization.hgq import HGQQuantizer, scheduled
from pquant.quantization.quantizer import TensorFormat

from ..methods import every_method

LN2 = math.log(2)
ROUND_MODES = ["TRN", "TRN_ZERO", "RND", "RND_CONV", "RND_ZERO", "RND_INF", "RND_MIN_INF"]
BITS = {
    "default_data_keep_negatives": True,
    "default_data_integer_bits": 2,
    "default_data_fractional_bits": 4,
    "default_weight_keep_negatives": True,
    "default_weight_fractional_bits": 5,
    "quantize_output": False,
    "use_relu_multiplier": False,
    "use_hgq": True,
}


def trained(shape: tuple[int, ...], k: bool = True, i: float = 1.0, f: float = 3.0, forget: float = math.inf, **modes: str) -> HGQQuantizer:
    quantizer = HGQQuantizer(TensorFormat(k=k, **modes), shape, forget).double()
    quantizer.i.data.fill_(i)
    quantizer.f.data.fill_(f)
    return quantizer


def spread(quantizer: HGQQuantizer, generator: torch.Generator) -> HGQQuantizer:
    """Give each bit width a value of its own, halves avoided, where rounding of oracle and quantizer might differ."""
    for bits, low, high in ((quantizer.i, -2, 3), (quantizer.f, -2, 6)):
        whole = torch.randint(low, high, bits.shape, generator=generator).double()
        bits.data.copy_(whole + 0.8 * torch.rand(bits.shape, generator=generator, dtype=torch.float64) - 0.4)
    return quantizer


def oracle(x: Tensor, i: Tensor, f: Tensor, k: bool, round_mode: str, overflow_mode: str) -> Tensor:
    """Return q(x) from differentiable parts alone, each rounding passing its gradient straight through."""
    i, f = i + (i.round() - i).detach(), f + (f.round() - f).detach()
    high = 2**i - 2**-f
    low = -high if overflow_mode == "SAT_SYM" else -(2**i)
    none = (i + f + k <= 0).detach()
    clipped = torch.where(x > high, high, torch.where(x < (low if k else 0), low if k else torch.zeros_like(low), x))
    v = torch.where(none, x, clipped) * 2**f
    n = torch.where(none, 0, fixed_point(v.detach(), 1, 40, 0, round_mode))
    return (v + (n - v).detach()) * 2**-f


@pytest.mark.parametrize("overflow_mode", SATURATING)
@pytest.mark.parametrize("round_mode", ROUND_MODES)
@settings(max_examples=25)
@given(k=st.booleans(), seed=st.integers(0, 10**6), shape=st.sampled_from([(), (3, 1), (3, 4)]))
def test_values_and_all_gradients_against_plain_autograd(round_mode: str, overflow_mode: str, k: bool, seed: int, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(seed)
    quantizer = spread(trained(shape, k, round_mode=round_mode, overflow_mode=overflow_mode), generator)
    x = (4 * torch.randn(5, 3, 4, generator=generator, dtype=torch.float64)).requires_grad_()
    g = torch.randn(5, 3, 4, generator=generator, dtype=torch.float64)
    q, expected = quantizer(x), oracle(x, quantizer.i, quantizer.f, k, round_mode, overflow_mode)
    assert torch.equal(q, expected)
    mine, theirs = (torch.autograd.grad(y, (x, quantizer.i, quantizer.f), g) for y in (q, expected))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)
    assert torch.equal(q, quantizer.eval()(x))


@pytest.mark.parametrize("overflow_mode", SATURATING)
@pytest.mark.parametrize("k", [False, True])
def test_values_are_those_of_the_fixed_format(overflow_mode: str, k: bool) -> None:
    x = torch.linspace(-5, 5, 1001)
    for i in range(-3, 4):
        for f in range(-3, 5):
            quantizer = trained((), k, i, f, overflow_mode=overflow_mode).float()
            assert torch.equal(quantizer(x), fixed_point(x, int(k), i, f, "RND", overflow_mode))
            assert torch.equal(quantizer.finalized()(x), quantizer(x))


def test_the_gradient_of_the_fractional_bits_is_ln2_times_the_error() -> None:
    quantizer = trained((), f=3.0)
    x = torch.tensor([0.3, -0.7], dtype=torch.float64)
    quantizer(x).sum().backward()
    assert quantizer.f.grad is not None and quantizer.i.grad is not None
    assert quantizer.f.grad.item() == pytest.approx(LN2 * float((x - quantizer(x)).detach().sum()))
    assert quantizer.i.grad.item() == 0


def test_a_format_without_bits_gives_zero_and_may_come_back() -> None:
    quantizer = trained((), i=0.0, f=-1.0)
    x = torch.tensor([0.3, 0.9], dtype=torch.float64, requires_grad=True)
    q = quantizer(x)
    q.backward(torch.tensor([1.0, 2.0], dtype=torch.float64))
    assert not q.any()
    assert x.grad is not None and x.grad.tolist() == [1.0, 2.0]
    assert quantizer.f.grad is not None and quantizer.f.grad.item() == pytest.approx(LN2 * (0.3 + 2 * 0.9))


@example(i=-0.12500000000000006, f=-0.12500000000000006, k=True)
@given(i=st.floats(-3, 3), f=st.floats(-3, 6), k=st.booleans())
def test_the_bits_paid_are_never_negative_and_pass_gradient_where_positive(i: float, f: float, k: bool) -> None:
    quantizer = trained((), k, i, f)
    bits = quantizer.bits()
    assert bits.item() == max(round(i) + round(f) + k, 0)
    bits.backward()
    assert quantizer.i.grad.item() == quantizer.f.grad.item() == float(bits.item() > 0)


def test_the_sign_is_paid_for_under_saturation_only() -> None:
    assert [trained((), overflow_mode=mode).bits().item() for mode in ("SAT", "SAT_SYM", "WRAP", "WRAP_SM")] == [5, 5, 4, 4]


def test_under_wrap_integer_bits_follow_the_values() -> None:
    quantizer = trained((), i=0.0, f=2.0, forget=0.25, overflow_mode="WRAP")
    assert "i" not in dict(quantizer.named_parameters())
    wide = torch.tensor([5.0, -3.0], dtype=torch.float64)
    assert torch.equal(quantizer(wide), wide) and quantizer.i.item() == 3
    quantizer(wide / 100)
    assert quantizer.i.item() == 2.75
    quantizer.eval()
    quantizer(100 * wide)
    assert quantizer.i.item() == 2.75
    assert quantizer(torch.tensor([9.0], dtype=torch.float64)).item() == 9 - 16


def test_exactly_minus_a_power_of_two_needs_no_bit_more() -> None:
    quantizer = trained((), i=-5.0, f=2.0, overflow_mode="WRAP")
    quantizer(torch.tensor([-4.0], dtype=torch.float64))
    assert quantizer.i.item() == 2


def test_after_tracing_nothing_in_the_calibration_set_wraps() -> None:
    torch.manual_seed(0)
    section = Quantization(**BITS, overflow_mode_data="WRAP")
    x = torch.randn(256, 6) * torch.linspace(0.1, 9, 256).view(-1, 1)
    model = pquant.compress(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), None, section, x)
    for _ in range(500):
        model(x[:8])
    before = pquant.finalize(model)(x)
    pquant.trace_ranges(model, [(x,)])
    final = pquant.finalize(model)
    errors = []
    for layer in (final[0], final[2]):
        layer.input_quantizer.register_forward_hook(lambda _, given, y: errors.append((given[0] - y).abs().max().item()))
    after = final(x)
    assert len(errors) == 2 and max(errors) <= 2**-5
    assert not torch.equal(before, after)


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def train(model: nn.Module, steps: int = 30, lr: float = 0.1) -> Tensor:
    """Train on a small task and return the inputs."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(64, 6, generator=generator)
    y = (x[:, :3].argmax(1) + 0).long()
    pquant.set_stage(model.train(), pquant.Stage.TRAIN, pquant.Horizon(3, steps // 3))
    optimizer = torch.optim.Adam(pquant.parameter_groups(model), lr)
    for step in range(steps):
        optimizer.zero_grad()
        (nn.functional.cross_entropy(model(x), y) + pquant.penalty(model)).backward()
        optimizer.step()
        pquant.on_batch_end(model)
        if step % (steps // 3) == steps // 3 - 1:
            pquant.on_epoch_end(model)
    return x


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_weight"])
def test_a_strong_regularization_leaves_no_operations(granularity: str) -> None:
    model = pquant.compress(net(), None, Quantization(**BITS, hgq_beta=1e-2, granularity=granularity), torch.randn(4, 6))
    before = pquant.ebops(model)
    train(model, 150)
    assert pquant.ebops(model) < before / 50


def test_without_regularization_bits_feel_the_task_alone() -> None:
    model = pquant.compress(net(), None, Quantization(**BITS), torch.randn(4, 6))
    pquant.set_stage(model, pquant.Stage.TRAIN)
    assert float(pquant.penalty(model)) == 0
    x = train(model, 3)
    bits = [module for module in model.modules() if isinstance(module, HGQQuantizer)]
    assert all(quantizer.f.grad is not None and quantizer.f.grad.abs().sum() > 0 for quantizer in bits)
    assert len(x)


def test_the_optimizer_gets_bits_without_weight_decay() -> None:
    model = pquant.compress(net(), None, Quantization(**BITS), torch.randn(4, 6))
    own, bits = pquant.parameter_groups(model)
    expected = {id(p) for module in model.modules() if isinstance(module, HGQQuantizer) for p in (module.i, module.f)}
    assert {id(p) for p in bits["params"]} == expected and bits["weight_decay"] == 0
    assert len(own["params"]) == 4


METHODS = every_method(start=1, delta=3)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_weight"])
def test_with_every_method_finalize_moves_no_bit(method: PruningMethod, first: bool, granularity: str) -> None:
    section = Quantization(**BITS, hgq_beta=1e-5, hgq_gamma=1e-5, granularity=granularity, pruning_first=first)
    if method.rescales and not first:
        with pytest.raises(ConfigError, match=f"layer '0': .*{type(method).__name__}"):
            pquant.compress(net(), method, section, torch.randn(4, 6))
        return
    model = pquant.compress(net(), method, section, torch.randn(4, 6))
    x = train(model, 12)
    model.eval()
    last = model(x)
    assert torch.equal(pquant.finalize(model)(x), last)
    again = pquant.compress(net(), method, section, torch.randn(4, 6))
    again.load_state_dict(copy.deepcopy(model.state_dict()))
    assert torch.equal(again.eval()(x), last)
    pquant.set_stage(model, pquant.Stage.FINETUNE)
    assert torch.equal(model(x), last)
    assert pquant.sparsity(model) > 0


def test_layers_may_have_rules_of_their_own() -> None:
    rules = {"0": {"weight": {"f": 2, "granularity": "per_channel"}, "input": {"enable": False}}, "2": {"enable_quantization": False}}
    model = pquant.compress(net(), None, Quantization(**BITS, hgq_beta=1e-4, layer_specific=rules), torch.randn(4, 6))
    assert model[0].weight_quantizer.f.shape == (8, 1) and float(model[0].weight_quantizer.f[0].detach()) == 2
    assert model[0].input_quantizer.is_float and model[2].weight_quantizer.is_float
    x = train(model, 6)
    assert torch.equal(pquant.finalize(model)(x), model.eval()(x))


@pytest.mark.parametrize("rule", [{"f": 1}, {"f": 1, "min_f": 1}, {"min_f": 3}, {"i": "auto"}, {"i": 0}])
def test_an_input_format_of_its_own_is_kept_after_another_output(rule: dict[str, Any]) -> None:
    x = torch.randn(20, 6)
    layers = [nn.Linear(6, 6), nn.Linear(6, 3)]
    outputs: dict[str, Any] = BITS | {"quantize_output": True}
    assert pquant.compress(nn.Sequential(*layers), None, Quantization(**outputs), x)[1].input_quantizer.is_float
    model = pquant.compress(nn.Sequential(*layers), None, Quantization(**outputs, layer_specific={"1": {"input": rule}}), x)
    own = model[1].input_quantizer
    assert isinstance(own, HGQQuantizer) and model[1].operand() is own
    assert own.min_f == rule.get("min_f") and own.auto == (rule.get("i") == "auto")
    if "f" in rule:
        assert float(own.f) == rule["f"]


def test_bits_that_are_no_numbers_are_not_finalized() -> None:
    model = pquant.compress(net(), None, Quantization(**BITS), torch.randn(4, 6))
    with torch.no_grad():
        model[2].weight_quantizer.f.fill_(math.nan)
    with pytest.raises(DivergedError, match="layer '2', weight quantizer: trained bits are not finite"):
        pquant.finalize(model)


def test_a_step_does_not_wait_for_the_device(no_host_sync: Callable) -> None:
    section = Quantization(**BITS, hgq_beta=1e-5, hgq_gamma=1e-5, granularity="per_weight", data_granularity="per_channel")
    model = pquant.compress(net(), DST(), section, torch.randn(4, 6))
    pquant.set_stage(model, pquant.Stage.TRAIN)
    x, penalty = torch.randn(8, 6), Penalty(model)
    with no_host_sync():
        (model(x).sum() + penalty()).backward()


@pytest.mark.parametrize("mode", ["SAT", "WRAP"])
def test_a_compiled_step_has_the_same_gradients(mode: str) -> None:
    section = Quantization(**BITS, hgq_beta=1e-5, granularity="per_weight", data_granularity="per_channel", overflow_mode_data=mode)
    plain = pquant.compress(net(), DST(threshold_init=0.05), section, torch.randn(4, 6))
    pquant.set_stage(plain, pquant.Stage.TRAIN)
    other = copy.deepcopy(plain)
    x = torch.randn(16, 6)

    def losses(model: nn.Module) -> Callable[[], torch.Tensor]:
        penalty = Penalty(model)
        return lambda: model(x).square().sum() + penalty()

    for step in (losses(plain), torch.compile(losses(other), backend="aot_eager", fullgraph=True)):
        step().backward()
    for (name, one), two in zip(plain.named_parameters(), other.parameters(), strict=True):
        assert one.grad is not None and two.grad is not None, name
        torch.testing.assert_close(one.grad, two.grad)
    assert torch.equal(other.eval()(x), plain.eval()(x))


@pytest.mark.parametrize(("epoch", "value"), [(0, 1e-6), (1, 1e-6), (2, 1e-6), (3, 1e-5), (4, 1e-4), (5, 1e-4), (9, 1e-4)])
def test_a_schedule_is_log_linear_between_its_points(epoch: int, value: float) -> None:
    assert scheduled(7.0, [[2, 1e-6], [4, 1e-4]], epoch) == pytest.approx(value)


def test_without_a_schedule_the_value_stands_and_zero_is_reached_linearly() -> None:
    assert scheduled(7.0, [], 3) == 7.0
    assert scheduled(7.0, [[0, 0.0], [4, 1.0]], 1) == pytest.approx(0.25)
