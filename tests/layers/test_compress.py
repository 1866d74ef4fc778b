"""Conversion of whole models: the user's stays as it is, what is shared stays shared, and what stays float is said."""

import copy
import itertools
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import pquant
from pquant.errors import ConfigError
from pquant.layers import PQActivation, PQAvgPool1d, PQAvgPool2d, PQAvgPool3d, PQBatchNorm1d, PQConv1d, PQConv2d, PQDense
from pquant.pruning import DST, NoPruning, PruningMethod, Wanda
from pquant.quantization import Quantization, fixed_point
from pquant.training.optimizer import parameter_groups

from ..formats import SEVEN_BITS as BITS

FIXED = Quantization(**BITS)
AUTO = Quantization(**(BITS | {"default_data_integer_bits": "auto", "default_weight_integer_bits": "auto"}))
TRAINED = Quantization(**BITS, use_hgq=True, hgq_beta=1e-6, granularity="per_weight", data_granularity="per_channel")


class Block(nn.Module):
    """A residual block with functional calls, a shared activation and an empty shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.act, self.shortcut, self.drop = nn.ReLU(), nn.Sequential(), nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv2(self.drop(self.act(self.bn1(self.conv1(x))))) + self.shortcut(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.blocks = nn.ModuleList([Block(4), Block(4)])
        self.pool, self.head = nn.AdaptiveAvgPool2d(2), nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.pool(x))


X = torch.randn(6, 2, 8, 8, generator=torch.Generator().manual_seed(0))


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def steps(model: nn.Module, x: Tensor, count: int = 2) -> None:
    optimizer = torch.optim.SGD(parameter_groups(model), 0.02)
    model.train()
    for _ in range(count):
        optimizer.zero_grad()
        (model(x).square().mean() + pquant.penalty(model)).backward()
        optimizer.step()
        pquant.on_batch_end(model)


@pytest.mark.parametrize("quantization", [None, FIXED, AUTO, TRAINED])
@pytest.mark.parametrize("pruning", [None, DST(), Wanda(sparsity=0.5)])
def test_the_users_model_is_left_untouched(pruning: PruningMethod | None, quantization: Quantization | None) -> None:
    model, seen = net(), []
    model.stem.eval()
    model.blocks[0].conv1.register_forward_hook(lambda *_: seen.append("hook"))
    model(X).sum().backward()
    seen.clear()
    parts = {name: module for name, module in model.named_modules()}
    tensors = {name: (tensor, tensor.clone(), tensor.grad) for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers())}
    modes, hooks = [module.training for module in model.modules()], len(model.blocks[0].conv1._forward_hooks)
    random = torch.get_rng_state()
    compressed = pquant.compress(model, pruning, quantization, X)
    steps(compressed, X)
    pquant.finalize(compressed)
    assert dict(model.named_modules()) == parts and all(type(module).__module__.startswith(("torch", __name__)) for module in parts.values())
    assert modes == [module.training for module in model.modules()] and hooks == len(model.blocks[0].conv1._forward_hooks)
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        same, value, grad = tensors[name]
        assert tensor is same and torch.equal(tensor, value) and tensor.grad is grad, name
    shared = {tensor.data_ptr() for tensor in model.parameters()} & {tensor.data_ptr() for tensor in compressed.parameters()}
    assert not shared
    torch.set_rng_state(random)


@pytest.mark.parametrize("example", [None, X])
def test_compressing_draws_no_random_numbers(example: Tensor | None) -> None:
    class Noisy(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.randn_like(x))

    torch.manual_seed(0)
    model = Noisy()
    before = torch.get_rng_state()
    compressed = pquant.compress(model, DST(), AUTO if example is not None else FIXED, example)
    pquant.unconverted(compressed, X)
    pquant.finalize(compressed)
    assert torch.equal(torch.get_rng_state(), before)


def test_modes_and_hooks_go_over_to_the_layers() -> None:
    model, seen = net(), []
    model.blocks[0].eval()
    model.pool.eval()
    model.blocks[0].conv1.register_forward_hook(lambda *_: seen.append("after"))
    model.blocks[0].conv1.register_forward_pre_hook(lambda *_: seen.append("before"))
    compressed = pquant.compress(model, DST(), FIXED, X)
    own = {name: module.training for name, module in model.named_modules()}
    for name, module in compressed.named_modules():
        if name in own:
            assert module.training is own[name], name
    seen.clear()
    compressed(X)
    assert seen == ["before", "after"]


def test_every_layer_of_a_known_kind_is_converted_and_keeps_its_name() -> None:
    compressed = pquant.compress(net(), DST(), FIXED, X)
    types = {name: type(module) for name, module in compressed.named_modules() if isinstance(module, pquant.layers.QuantizedLayer)}
    assert types["stem.0"] is PQConv2d and types["blocks.1.act"] is PQActivation and types["pool"] is PQAvgPool2d and types["head.1"] is PQDense
    assert all(compressed.get_submodule(name).name == name for name in types)
    assert len(types) == 1 + 2 + 2 * 4 + 1 + 3
    state = compressed.state_dict()
    assert all(torch.equal(state[name], value) for name, value in net().state_dict().items()), "pretrained checkpoints load by name"
    assert compressed.load_state_dict(net().state_dict(), strict=False).unexpected_keys == []


def test_a_bare_layer() -> None:
    layer, x = nn.Linear(5, 3), torch.randn(4, 5)
    model = pquant.compress(layer, DST(threshold_init=0.1), FIXED)
    assert type(model) is PQDense and type(layer) is nn.Linear
    assert pquant.unconverted(model) == pquant.unconverted(model, x) == []
    pquant.set_stage(model, pquant.Stage.TRAIN)
    assert 0 < pquant.sparsity(model) < 1
    final = pquant.finalize(model)
    assert type(final) is PQDense and torch.equal(final(x), model.eval()(x))
    assert [row["name"] for row in pquant.layer_table(model)] == [""]


@pytest.mark.parametrize("training", [True, False])
def test_switched_off_a_whole_model_is_the_float_one(training: bool) -> None:
    model = net().train(training)
    model.pool = nn.AvgPool2d(3)
    compressed = pquant.compress(model, NoPruning(), None, X)
    for _ in range(2):
        torch.manual_seed(1)
        expected = model(X)
        torch.manual_seed(1)
        assert torch.equal(compressed(X), expected)
    assert len(list(compressed.parameters())) == len(list(model.parameters()))
    assert compressed.state_dict().keys() == model.state_dict().keys()


def test_no_parameter_is_dead_and_an_optimizer_made_at_once_has_them_all() -> None:
    for section in (FIXED, AUTO, TRAINED):
        compressed = pquant.compress(net(), DST(threshold_init=0.01, alpha=1e-3), section, X)
        held = {id(parameter) for group in parameter_groups(compressed) for parameter in group["params"]}
        for stage in pquant.Stage:
            pquant.set_stage(compressed, stage)
            (compressed(X).square().sum() + pquant.penalty(compressed)).backward()
            assert {id(parameter) for parameter in compressed.parameters()} == held
            if stage is pquant.Stage.TRAIN:
                assert not [name for name, parameter in compressed.named_parameters() if parameter.grad is None]
        extra = len(held) - len(list(net().parameters()))
        thresholds, multipliers = 7, 3
        assert extra == thresholds + multipliers or section is TRAINED


class Tied(nn.Module):
    """Two dense layers with one weight, one of them called twice, and an activation in three places."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Linear(6, 6), nn.Linear(6, 6, bias=False), nn.ReLU()
        self.again = self.a
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.act(self.again(self.act(self.a(x)))))


@pytest.mark.parametrize("quantization", [FIXED, AUTO, TRAINED])
@pytest.mark.parametrize("pruning", [DST(threshold_init=0.1), Wanda(sparsity=0.5, t_delta=1, t_start_collecting_batch=0)])
def test_what_is_shared_stays_shared(pruning: PruningMethod, quantization: Quantization) -> None:
    model, x = Tied(), torch.randn(8, 6)
    compressed = pquant.compress(model, pruning, quantization, x)
    assert compressed.again is compressed.a and compressed.a.weight is compressed.b.weight
    assert compressed.a.pruner is compressed.b.pruner and compressed.a.weight_quantizer is compressed.b.weight_quantizer
    groups = [id(parameter) for group in parameter_groups(compressed) for parameter in group["params"]]
    assert len(groups) == len(set(groups)) == len(list(compressed.parameters()))
    assert pquant.model_metrics(compressed)["params"] == 36 + 6
    pquant.set_stage(compressed, pquant.Stage.TRAIN)
    steps(compressed, x)
    for stage in (pquant.Stage.TRAIN, pquant.Stage.FINETUNE):
        if stage is pquant.Stage.FINETUNE:
            pquant.set_stage(compressed, stage)
        final = pquant.finalize(compressed)
        assert torch.equal(final(x), compressed.eval()(x)) and final.a.weight is final.b.weight and final.again is final.a
        assert torch.equal(compressed.a.finalized_parameters()[0], compressed.b.finalized_parameters()[0])
        twin = copy.deepcopy(compressed)
        assert twin.a.weight is twin.b.weight and twin.a.pruner is twin.b.pruner
    assert pquant.sparsity(compressed) > 0.1


def test_a_weight_shared_with_a_layer_that_stays_float() -> None:
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embed(x))

    x = torch.arange(9).view(3, 3)
    compressed = pquant.compress(Language(), DST(threshold_init=0.2), FIXED, x)
    pquant.set_stage(compressed, pquant.Stage.TRAIN)
    assert compressed.head.weight is compressed.embed.weight
    y = compressed.eval()(x)
    final = pquant.finalize(compressed)
    assert torch.equal(final(x), y) and torch.equal(final.embed.weight, fixed_point(compressed.embed.weight, 1, 0, 6))
    assert pquant.sparsity(final) == pquant.sparsity(compressed) > 0


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act, self.norm = nn.Linear(4, 4), nn.GELU(), nn.BatchNorm1d(4, track_running_stats=False)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.own, self.other, self.empty, self.drop = OwnLinear(4, 4), OtherLinear(4, 4), nn.Sequential(), nn.Dropout(0.1)
        self.sines = nn.ModuleList(Sine() for _ in range(6))
        self.free = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.act(self.fc(x)))
        x = self.attention(x[:, None], x[:, None], x[:, None])[0][:, 0]
        x = F.relu(self.other(self.own(self.empty(self.drop(x))))) * self.free - x
        for sine in self.sines:
            x = sine(x)
        return (torch.cat([x, -x], 1) * 2).reshape(-1, 2, 4).mean(1)


class OwnLinear(nn.Linear):
    pass


class OtherLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


def test_what_stays_float_is_listed_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    x = torch.randn(5, 4)
    compressed = pquant.compress(Mixed(), None, FIXED, x)
    modules = ["BatchNorm1d (norm)", "OtherLinear (other)"]
    assert pquant.unconverted(compressed) == [*modules, "6 x Sine (sines.*)"]
    assert pquant.unconverted(compressed, x) == [*modules, "6 x sin (sines.*)"]
    assert isinstance(compressed.own, (PQDense, OwnLinear)) and {"relu", "mul", "mean", "free_constant"} <= dict(compressed.named_children()).keys()
    for line in pquant.unconverted(compressed, x):
        assert f"stays float: {line}" in caplog.messages


def test_functional_calls_are_named_by_the_module_that_makes_them() -> None:
    class Functional(Block):
        def forward(self, x: Tensor) -> Tensor:
            y = F.max_pool2d(self.conv1(x), 2).flatten(1) + 0
            return torch.sigmoid(y).relu_()

    model = nn.Sequential(nn.Identity(), Functional(2))
    x = torch.randn(1, 2, 4, 4)
    assert pquant.unconverted(pquant.compress(model, None, FIXED), x) == ["relu (1)", "sigmoid (1)"]
    compressed = pquant.compress(model, None, FIXED, x)
    assert isinstance(compressed[1].sigmoid, PQActivation) and pquant.unconverted(compressed, x) == [
        "BatchNorm2d (1.bn1)",
        "Conv2d (1.conv2)",
        "ReLU (1.act)",
    ]


def test_a_clean_model_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    pquant.compress(net(), None, FIXED, X)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("pool", "kind", "shape", "kernel"),
    [
        (nn.AdaptiveAvgPool1d(2), PQAvgPool1d, (2, 8), (4,)),
        (nn.AdaptiveAvgPool2d(1), PQAvgPool2d, (2, 5, 7), (5, 7)),
        (nn.AdaptiveAvgPool2d((2, None)), PQAvgPool2d, (2, 6, 5), (3, 1)),
        (nn.AdaptiveAvgPool3d((1, 2, 3)), PQAvgPool3d, (2, 4, 4, 3), (4, 2, 1)),
        (nn.AdaptiveAvgPool2d(3), nn.AdaptiveAvgPool2d, (2, 6, 5), None),
        (nn.AdaptiveAvgPool1d(4), nn.AdaptiveAvgPool1d, (2, 2), None),
    ],
)
def test_an_adaptive_pool_becomes_a_plain_one_where_its_windows_are_equal(pool: nn.Module, kind: type, shape: tuple[int, ...], kernel: Any) -> None:
    x = torch.randn(3, *shape)
    model = pquant.compress(nn.Sequential(pool.eval()), None, None, x)
    assert type(model[0]) is kind and model[0].training is False
    assert torch.allclose(model(x), pool(x), atol=1e-6)
    assert pquant.unconverted(model) == ([] if kernel else [f"{kind.__name__} (0)"])
    if kernel:
        assert model[0].kernel_size == kernel
        quantized = pquant.compress(nn.Sequential(pool), None, FIXED, x)
        assert torch.equal(quantized(x), fixed_point(pool(fixed_point(x, 1, 2, 4)), 1, 2, 4))
    assert type(pquant.compress(nn.Sequential(pool), None, FIXED)[0]) is type(pool), "its windows are not known"


@pytest.mark.parametrize(("sizes", "plain"), [((8, 8), True), ((8, 4), False)])
def test_an_adaptive_pool_called_for_maps_of_two_sizes(sizes: tuple[int, int], plain: bool) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.AdaptiveAvgPool1d(2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.pool(x[..., :size]) for size in sizes], 1)

    x = torch.randn(2, 3, 8)
    model = pquant.compress(Two(), None, None, x)
    assert (type(model.pool) is PQAvgPool1d) is plain and torch.allclose(model(x), Two()(x))


def test_lazy_modules_are_made_by_the_example() -> None:
    model = nn.Sequential(nn.LazyConv1d(4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    x = torch.randn(5, 3, 8)
    compressed = pquant.compress(model, DST(), FIXED, x)
    assert [type(module) for module in compressed] == [PQConv1d, PQBatchNorm1d, PQActivation, nn.Flatten, PQDense]
    assert all(isinstance(model[index].weight, nn.UninitializedParameter) for index in (0, 4)), "the user's stays lazy"
    pquant.set_stage(compressed, pquant.Stage.TRAIN)
    steps(compressed, x)
    assert torch.equal(pquant.finalize(compressed)(x), compressed.eval()(x))


def test_lazy_modules_without_an_example_stay_float_and_are_listed() -> None:
    model = pquant.compress(nn.Sequential(nn.LazyLinear(2), nn.ReLU()), None, FIXED)
    assert pquant.unconverted(model) == ["LazyLinear (0)"]


def test_a_transformers_fused_kernel_does_not_pass_the_layers_by() -> None:
    torch.manual_seed(0)
    layer, x = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0), torch.randn(2, 3, 8)
    for model in (layer, nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)):
        compressed = pquant.compress(model, None, FIXED, x).eval()
        y = compressed(x)
        with torch.no_grad():
            assert torch.allclose(compressed(x), y, atol=1e-5)
            assert (y - model.eval()(x)).abs().max() > 1e-3


def test_the_layers_are_on_the_device_of_the_model() -> None:
    with torch.device("meta"):
        model = Net()
    for section in (FIXED, Quantization(**BITS, use_hgq=True, granularity="per_weight")):
        compressed = pquant.compress(model, DST(), section)
        assert {tensor.device.type for tensor in itertools.chain(compressed.parameters(), compressed.buffers())} == {"meta"}


def test_examples_of_several_inputs() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(5, 4)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.a(x) + self.b(y)

    example = torch.randn(2, 3), torch.randn(2, 5) * 100
    compressed = pquant.compress(Sum(), None, AUTO, example)
    assert compressed.b.input_quantizer.i > compressed.a.input_quantizer.i + 3
    assert compressed(*example).shape == (2, 4) and pquant.unconverted(compressed, example) == []


def test_an_example_that_does_not_fit_leaves_everything_as_it_was() -> None:
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError):
        pquant.compress(model, None, FIXED, torch.randn(2, 7))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items()) and model.training


def test_names_that_no_layer_has() -> None:
    with pytest.raises(ConfigError, match=r"DST.disable_pruning_for_layers: unknown layer 'head.4': did you mean 'head.\d'\? valid: stem.0"):
        pquant.compress(net(), DST(disable_pruning_for_layers=["head.4"]))
    with pytest.raises(ConfigError, match="unknown layer 'stem.1'"):
        pquant.compress(net(), DST(disable_pruning_for_layers=["stem.1"]))  # a batch norm is not pruned
    compressed = pquant.compress(net(), DST(disable_pruning_for_layers=["blocks.*", "stem.0"]), FIXED)
    assert list(pquant.layers.pruned_layers(compressed)) == ["head.1", "head.3"]
    assert pquant.layers.pruned_layers(pquant.compress(net(), DST(enable_pruning=False))) == {}


def test_skipped_quantizers_change_no_value() -> None:
    """With an example, a layer does not quantize again what its source has quantized; without one it does."""
    for section in (
        FIXED,
        Quantization(**BITS, use_relu_multiplier=False),
        Quantization(**BITS, layer_specific={"head.1": {"input": {"f": 2}}}),
    ):
        known, unknown = pquant.compress(net(), DST(), section, X), pquant.compress(net(), DST(), section)
        unknown.pool = PQAvgPool2d(3, quantization=section, name="pool")
        for stage in pquant.Stage:
            for model in (known, unknown):
                pquant.set_stage(model, stage)
            assert torch.equal(known.eval()(X), unknown.eval()(X))
            grads = []
            for model in (known, unknown):
                torch.manual_seed(0)
                model.train().zero_grad()
                model(X).square().sum().backward()
                grads.append({name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None})
            assert grads[0].keys() == grads[1].keys() and all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])


def test_something_between_two_layers_is_quantized_again() -> None:
    class Between(nn.Module):
        def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.a, self.b, self.change = nn.Linear(4, 4), nn.Linear(4, 4), change

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.change(self.a(x)))

    x = torch.randn(8, 4)
    for change, skipped in [
        (lambda y: y, True),
        (lambda y: torch.sin(y), False),
        (lambda y: y.sin_(), False),
        (lambda y: y / 3, True),
        (lambda y: y.mul_(0.3), True),
        (lambda y: y.clone(), False),
        (lambda y: torch.relu_(y), True),
    ]:
        model = pquant.compress(Between(change), None, FIXED, x)
        assert bool(model.b.sources) is skipped
        seen: list[Tensor] = []
        model.b.linear_map = lambda y, *_, seen=seen: seen.append(y) or y
        model(x)
        assert torch.equal(seen[0], fixed_point(seen[0], 1, 2, 4))


STATES: dict[str, tuple[PruningMethod, Quantization]] = {
    "dst, fixed": (DST(threshold_init=0.05), FIXED),
    "dst, auto": (DST(threshold_init=0.05, threshold_type="layerwise"), AUTO),
    "wanda, trained": (Wanda(sparsity=0.5, t_delta=2, t_start_collecting_batch=1), TRAINED),
    "float": (NoPruning(), Quantization(enable_quantization=False)),
}


@pytest.mark.parametrize("which", STATES)
def test_a_model_is_saved_loaded_copied_and_pickled_at_any_stage(which: str, tmp_path: Any) -> None:
    pruning, quantization = STATES[which]
    model = pquant.compress(net(), pruning, quantization, X)
    for stage in pquant.Stage:
        pquant.set_stage(model, stage)
        steps(model, X)
        torch.save(model.state_dict(), tmp_path / "state.pt")
        torch.manual_seed(7)
        fresh = pquant.compress(Net(), pruning, quantization, torch.randn(2, 2, 8, 8))
        fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        y = model.eval()(X)
        for other in (fresh, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other.eval()(X), y), stage
            assert pquant.model_metrics(other) == pquant.model_metrics(model)
        twin = copy.deepcopy(model)
        for other in (fresh, twin):
            torch.manual_seed(3)
            steps(other, X)
        if which == "float":
            assert torch.equal(fresh.eval()(X), twin.eval()(X))
        torch.manual_seed(3)
        steps(model, X)
        assert torch.equal(model.eval()(X), twin.eval()(X)) and torch.equal(model(X), fresh.eval()(X)), "and goes on alike"


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """Draw a chain of layers that fit each other, and data for it."""
    torch.manual_seed(draw(st.integers(0, 99)))
    dims, channels, size = draw(st.integers(0, 2)), draw(st.sampled_from([2, 4])), 8
    x = torch.randn(6, channels, *[size] * dims) * draw(st.sampled_from([0.5, 3.0]))
    convs, pools, norms = [None, nn.Conv1d, nn.Conv2d], [None, nn.AvgPool1d, nn.AvgPool2d], [nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d]
    relu, layers = nn.ReLU(), []
    for kind in draw(st.lists(st.sampled_from(["weight", "norm", "relu", "shared relu", "tanh", "pool", "max", "drop", "empty"]), max_size=6)):
        if kind == "weight":
            wider, bias = draw(st.sampled_from([2, 4, 6])), draw(st.booleans())
            groups = 2 if dims and draw(st.booleans()) else 1
            layers += [convs[dims](channels, wider, 3, padding=1, groups=groups, bias=bias) if dims else nn.Linear(channels, wider, bias)]
            channels = wider
        elif kind in ("pool", "max") and dims and size > 1:
            layers += [pools[dims](2) if kind == "pool" else [None, nn.MaxPool1d, nn.MaxPool2d][dims](2)]
            size //= 2
        elif kind in ("norm", "tanh", "relu", "drop"):
            layers += [{"norm": norms[dims](channels), "tanh": nn.Tanh(), "relu": nn.ReLU(), "drop": nn.Dropout(0.3)}[kind]]
        else:
            layers += [relu if kind == "shared relu" else nn.Sequential()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * size**dims, 3)), x


sections = st.builds(
    Quantization,
    default_data_keep_negatives=st.just(True),
    default_data_integer_bits=st.sampled_from([1, 3, "auto"]),
    default_data_fractional_bits=st.integers(1, 6),
    default_weight_keep_negatives=st.just(True),
    default_weight_integer_bits=st.sampled_from([-1, 0, "auto"]),
    default_weight_fractional_bits=st.integers(2, 8),
    quantize_input=st.booleans(),
    quantize_output=st.booleans(),
    enable_quantization=st.sampled_from([True, True, True, False]),
    use_hgq=st.booleans(),
    hgq_beta=st.sampled_from([0.0, 1e-5]),
    use_real_tanh=st.booleans(),
    overflow_mode_data=st.sampled_from(["SAT", "SAT_SYM", "WRAP", "WRAP_SM"]),
    overflow_mode_parameters=st.sampled_from(["SAT", "SAT_SYM", "WRAP"]),
    round_mode=st.sampled_from(["RND", "RND_CONV", "TRN", "RND_ZERO"]),
    use_relu_multiplier=st.booleans(),
    granularity=st.sampled_from(["per_tensor", "per_channel", "per_weight"]),
    pruning_first=st.booleans(),
)
methods = st.sampled_from([NoPruning(), DST(threshold_init=0.1), Wanda(sparsity=0.4, t_delta=2, t_start_collecting_batch=0)])


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(networks(), sections, methods)
def test_random_models_are_finalized_and_reloaded_bit_for_bit(model: tuple[nn.Module, Tensor], section: Quantization, pruning: PruningMethod) -> None:
    float_model, x = model
    off = pquant.compress(float_model, None, Quantization(enable_quantization=False), x)
    assert torch.equal(off.eval()(x), copy.deepcopy(float_model).eval()(x))
    compressed = pquant.compress(float_model, pruning, section, x)
    test = torch.randn_like(x) * 4
    for stage in pquant.Stage:
        pquant.set_stage(compressed, stage)
        steps(compressed, x)
        y = compressed.eval()(test)
        final = pquant.finalize(compressed)
        assert torch.equal(final(test), y)
        assert pquant.ebops(final) == pquant.ebops(compressed) >= 0
        assert pquant.sparsity(final) == pquant.sparsity(compressed)
        fresh = pquant.compress(float_model, pruning, section, x)
        fresh.load_state_dict(compressed.state_dict())
        assert torch.equal(fresh.eval()(test), y)


def test_a_finalized_model_whose_sums_fit_float32_is_exact_however_they_are_made() -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 64)
    model = pquant.finalize(pquant.compress(nn.Sequential(nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 5)), DST(), FIXED, x))
    y, order = model(x), torch.randperm(40)
    assert torch.equal(torch.cat([model(row[None]) for row in x]), y)
    shuffled = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in (shuffled[0].weight, shuffled[0].bias):
            parameter.copy_(parameter[order].clone())
        shuffled[2].weight.copy_(shuffled[2].weight[:, order].clone())
    assert torch.equal(shuffled(x), y)
    assert torch.equal(model.double()(x.double()), y.double())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2), None, None), "model must be an object of Module, got an object of Tensor"),
        ((nn.Linear(2, 2), "dst", None), "pruning must be an object of PruningMethod, got an object of str"),
        ((nn.Linear(2, 2), DST, None), "pruning must be an object of PruningMethod, got the class DST"),
        ((nn.Linear(2, 2), None, 8), "quantization must be an object of Quantization, got an object of int"),
    ],
)
def test_arguments_of_another_type_are_refused(arguments: tuple[Any, Any, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"compress: {message}"):
        pquant.compress(*arguments)


def test_models_and_examples_that_cannot_be_compressed_are_refused() -> None:
    net, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4)
    for compiled, place in ((torch.compile(net), "model"), (nn.Sequential(nn.ReLU(), torch.compile(net)), "model.1")):
        with pytest.raises(ConfigError, match=rf"before torch\.compile: put {re.escape(place)}\._orig_mod there"):
            pquant.compress(compiled, None, FIXED, x)
    with pytest.raises(ConfigError, match="got TorchScript"):
        pquant.compress(torch.jit.script(net), None, FIXED, x)
    with pytest.raises(ConfigError, match="parameter '0.weight' is complex"):
        pquant.compress(nn.Sequential(nn.Linear(4, 4, dtype=torch.complex64)), None, FIXED)
    for example in (torch.zeros(0, 4), (torch.zeros(0, 4),), {"input": torch.zeros(0, 4)}):
        with pytest.raises(ConfigError, match=r"at least one example, got a tensor of shape \(0, 4\)"):
            pquant.compress(net, None, FIXED, example)
    with pytest.raises(ConfigError, match=r"horizon must be a Horizon\(epochs, steps_per_epoch\), got \(3, 4\)"):
        pquant.set_stage(pquant.compress(net, DST(), FIXED, x), pquant.Stage.TRAIN, (3, 4))  # type: ignore[arg-type]
