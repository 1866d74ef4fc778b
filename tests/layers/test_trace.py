"""What compress learns from an example, and what that leaves behind: nothing; of models in training, with state, hooks and odd outputs."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pquant
from pquant.errors import ConfigError
from pquant.layers import PQActivation, PQDense
from pquant.pruning import Wanda
from pquant.quantization import Quantization, fixed_point

FIXED = Quantization(
    default_data_keep_negatives=True,
    default_data_integer_bits=3,
    default_data_fractional_bits=4,
    default_weight_keep_negatives=True,
    default_weight_fractional_bits=7,
)
AUTO = Quantization(
    default_data_keep_negatives=True,
    default_data_integer_bits="auto",
    default_data_fractional_bits=4,
    default_weight_keep_negatives=True,
    default_weight_fractional_bits=7,
)


class InPlace(nn.Module):
    """Rectifies what its first layer gives in place, and does the rest as ``use`` says."""

    def __init__(self, use: Callable[["InPlace", Tensor], Any]) -> None:
        super().__init__()
        self.c, self.r, self.d, self.use = nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 4), use

    def forward(self, x: Tensor) -> Any:
        return self.use(self, self.c(x))


def of_a_slice(net: InPlace, y: Tensor) -> Tensor:
    net.r(y[:, :4])
    return net.d(y)


def of_a_view(net: InPlace, y: Tensor) -> Tensor:
    z = net.r(y.view(-1, 4))
    return net.d(y) + z.sum()


def of_what_a_view_is_of(net: InPlace, y: Tensor) -> Tensor:
    view = y.view(-1, 2, 4)
    net.r(y)
    return net.d(view.flatten(1))


def of_a_detached_one(net: InPlace, y: Tensor) -> Tensor:
    net.r(y.detach())
    return net.d(y)


def returned_in_training(net: InPlace, y: Tensor) -> Any:
    z = net.r(y)
    return (net.d(z), y) if net.training else net.d(z)


def read_in_training(net: InPlace, y: Tensor) -> Tensor:
    z = net.r(y)
    return net.d(z) + (y.mean() if net.training else 0)


def only_with_targets(net: InPlace, y: Tensor, targets: Any = None) -> Any:
    z = net.r(y)
    return (net.d(z), y, targets["boxes"]) if net.training else net.d(z)


USES = [of_a_slice, of_a_view, of_what_a_view_is_of, of_a_detached_one, returned_in_training, read_in_training]
each_use = pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)


def in_place(use: Callable[[InPlace, Tensor], Any]) -> tuple[InPlace, Tensor]:
    torch.manual_seed(0)
    return InPlace(use), torch.randn(5, 8)


def flat(outputs: Any) -> Tensor:
    return torch.cat([output.flatten() for output in (outputs if isinstance(outputs, tuple) else (outputs,))])


@each_use
@pytest.mark.parametrize("training", [True, False])
def test_switched_off_a_relu_in_place_is_the_identity_whatever_reads_what_it_overwrites(use: Any, training: bool) -> None:
    net, x = in_place(use)
    model = pquant.compress(net, None, None, x)
    net.train(training)
    model.train(training)
    y, expected = flat(model(x)), flat(net(x))
    assert torch.equal(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    for mine, theirs in zip(model.parameters(), net.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)


@each_use
def test_quantized_a_relu_in_place_moves_no_bit_when_finalized(use: Any) -> None:
    net, x = in_place(use)
    section, seen = replace(FIXED, layer_specific={"r": {"output": {"f": 6}}}), list[Tensor]()
    model = pquant.compress(net, None, section, x).eval()
    torch.nn.init.constant_(model.r.multiplier, -1)
    model.d.register_forward_hook(lambda layer, args, y: seen.append(layer.input_quantizer(args[0])))
    assert torch.equal(pquant.finalize(model)(x), model(x))
    assert torch.equal(seen[-1], fixed_point(seen[-1], 1, 3, 4)), "the halves that the ReLU gives are quantized again"


def test_a_relu_in_place_is_left_so_where_training_takes_more_than_the_example() -> None:
    net, x = in_place(only_with_targets)
    assert pquant.compress(net, None, None, x).r.overwrites


def test_a_relu_in_place_whose_input_nothing_reads_again_is_not_left_so() -> None:
    net, x = in_place(lambda net, y: net.d(net.r(y)))
    model = pquant.compress(net, None, FIXED, x)
    assert isinstance(model.r, PQActivation) and not model.r.overwrites and model.d.sources


class Off(nn.Module):
    """Puts values between two layers off the grid, in training alone."""

    def __init__(self, change: Callable[[Tensor, bool], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.change = nn.Linear(8, 8), nn.Linear(8, 8), change

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.change(self.a(x), self.training))


CHANGES: dict[str, tuple[Callable[[Tensor, bool], Tensor], bool]] = {
    "dropout": (lambda y, training: F.dropout(y, 0.3, training), False),
    "noise": (lambda y, training: y + torch.randn_like(y) if training else y, False),
    "noise in place": (lambda y, training: y.add_(torch.randn_like(y)) if training else y, False),
    "with numpy": (lambda y, training: y * (1 + float(np.random.rand())) if training else y, False),
    "with Python": (lambda y, training: y * (1 + random.random()) if training else y, False),
    "nothing": (lambda y, training: y, True),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_what_training_puts_off_the_grid_is_quantized_again(kind: str) -> None:
    change, skipped = CHANGES[kind]
    torch.manual_seed(0)
    x, seen = 6 * torch.randn(64, 8), list[Tensor]()
    model = pquant.compress(Off(change), None, FIXED, x)
    assert bool(model.b.sources) is skipped
    model.b.input_quantizer.register_forward_hook(lambda *args: seen.append(args[2].detach()))
    for training in (True, False):
        model.train(training)(x)
        assert torch.equal(seen[-1], fixed_point(seen[-1], 1, 3, 4)) and float(seen[-1].max()) > 1


@pytest.mark.parametrize("kind", CHANGES)
def test_tracing_training_draws_no_random_numbers(kind: str) -> None:
    def states() -> tuple[list[int], Any, list[int]]:
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()

    net, x = Off(CHANGES[kind][0]), torch.randn(4, 8)
    before = states()
    pquant.compress(net, None, AUTO, x)
    assert states() == before


def test_a_single_example_is_enough_for_batch_norm() -> None:
    net = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    model = pquant.compress(net, None, FIXED, torch.randn(1, 8))
    assert [bool(model[at].sources) for at in (1, 2, 3)] == [True] * 3


@pytest.mark.parametrize("change", [lambda y: y * 1.7, lambda y: y.mul_(1.7)], ids=["another", "in place"])
def test_what_a_hook_changes_is_quantized_again(change: Callable[[Tensor], Tensor]) -> None:
    for index, register in ((0, "register_forward_hook"), (1, "register_forward_pre_hook")):
        net, x, seen = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3)), torch.randn(4, 8), list[Tensor]()
        getattr(net[index], register)(lambda module, args, y=None: change(args[0] if y is None else y))
        model = pquant.compress(net, None, FIXED, x)
        assert not model[1].sources
        model[1].input_quantizer.register_forward_hook(lambda *args, seen=seen: seen.append(args[2]))
        model(x)
        assert torch.equal(seen[0], fixed_point(seen[0], 1, 3, 4))


class Counter(nn.Module):
    """Counts its forwards in a buffer and in an attribute, and takes a moving average."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.calls, self.seen = nn.Linear(8, 8), 0, list[Tensor]()
        self.register_buffer("n", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        self.n += 1
        self.calls += 1
        self.mean.lerp_(x.mean(0), 0.1)
        self.seen.append(x)
        return self.fc(x) * self.n + self.mean


class Recurrent(nn.Module):
    """Keeps a state of the batch's size."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.fc = nn.GRUCell(8, 8), nn.Linear(8, 2)
        self.h: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.h is None:
            self.h = x.new_zeros(x.shape[0], 8)
        self.h = self.cell(x, self.h)
        return self.fc(self.h)


@pytest.mark.parametrize("section", [None, FIXED, AUTO], ids=["off", "fixed", "auto"])
def test_an_example_leaves_no_state_behind(section: Quantization | None) -> None:
    x = torch.randn(4, 8)
    net = Counter()
    model = pquant.compress(net, None, section, x)
    for one in (net, model):
        assert one.n == 0 and one.calls == 0 and one.seen == [] and torch.equal(one.mean, torch.zeros(8))
    pquant.unconverted(model, x)
    assert model.n == 0 and model.calls == 0
    if section is None:
        assert torch.equal(model(x), net(x)) and torch.equal(model(x), net(x))


@pytest.mark.parametrize("section", [None, FIXED, AUTO], ids=["off", "fixed", "auto"])
def test_a_state_of_the_batchs_size_is_no_obstacle(section: Quantization | None) -> None:
    net, x = Recurrent(), torch.randn(4, 8)
    model = pquant.compress(net, None, section, x)
    assert model.h is None and isinstance(model.fc, PQDense) and len(model.fc.calls) == 1 and model.fc.calls[0].input == (1, 8)
    if section is None:
        assert torch.equal(model(x), net(x))
    if section is AUTO:
        assert isinstance(pquant.ebops(model), float), "the range was seen"


class Lazy(Counter):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.LazyLinear(8)


def test_lazy_modules_are_made_without_a_trace_of_the_example() -> None:
    net, x = Lazy().train(), torch.randn(4, 8)
    net.fc.eval()
    before = torch.get_rng_state()
    model = pquant.compress(net, None, FIXED, x)
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(model.fc, PQDense) and model.fc.in_features == 8 and model.n == 0 and model.training and not model.fc.training
    assert isinstance(net.fc.weight, nn.UninitializedParameter)


class Odd(nn.Module):
    def __init__(self, give: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.fc, self.give = nn.Linear(8, 2), give

    def forward(self, x: Tensor) -> Any:
        return self.give(self.fc(x))


@pytest.mark.parametrize(
    "give",
    [
        lambda y: (y, y[:, :0]),
        lambda y: (y * float("nan"), y),
        lambda y: {"a": y / 0, "b": [None, 3, y]},
        lambda y: y.to_sparse(),
        lambda y: y.to(torch.complex64),
        lambda y: None,
    ],
    ids=["empty", "nan", "infinite", "sparse", "complex", "none"],
)
def test_odd_outputs_are_no_obstacle(give: Callable[[Tensor], Any]) -> None:
    model = pquant.compress(Odd(give), None, FIXED, torch.randn(4, 8))
    assert isinstance(model.fc, PQDense) and model.fc.calls[0].input == (1, 8)


def test_an_example_that_is_not_finite_is_no_obstacle() -> None:
    for value in (float("nan"), float("inf"), 1e38):
        x = torch.full((4, 8), value)
        assert pquant.compress(nn.Linear(8, 2), None, None, x).calls[0].input == (1, 8)


def by_table(y: Tensor) -> Tensor:
    return y * {4: 1.0}[len(y)]


def by_division(y: Tensor) -> Tensor:
    return y * (1 / (len(y) // 4))


def by_index(y: Tensor) -> Tensor:
    return y * [1.0][4 - len(y)]


def by_exit(y: Tensor) -> Tensor:
    if len(y) != 4:
        raise NotImplementedError("four alone")
    return y


@pytest.mark.parametrize("give", [by_table, by_division, by_index, by_exit], ids=lambda give: give.__name__)
def test_a_model_of_one_batch_size_may_fail_for_others_as_it_likes(give: Callable[[Tensor], Tensor]) -> None:
    net, x = Odd(give), torch.randn(4, 8)
    model = pquant.compress(net, None, None, x)
    assert torch.equal(model(x), net(x)) and pquant.compress(net, None, FIXED, x).fc.calls[0].input == (1, 8)


class Several(nn.Module):
    """Takes a tensor, maybe a mask, a number, and a nested structure of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(5, 4)

    def forward(self, x: Tensor, mask: Tensor | None = None, times: int = 1, more: Any = None) -> Tensor:
        assert mask is None and type(times) is int
        y = self.a(x) * times
        return y if more is None else y + self.b(more["y"][0])


def test_examples_by_keyword_and_of_other_things_than_tensors() -> None:
    torch.manual_seed(0)
    net, x, y = Several(), torch.randn(4, 3), torch.randn(4, 5) * 100
    for example in ((x, None, 3, {"y": [y, None]}), {"x": x, "mask": None, "times": 3, "more": {"y": [y, None]}}):
        model = pquant.compress(net, None, AUTO, example)
        assert model.b.input_quantizer.i > model.a.input_quantizer.i + 3
        assert [layer.calls[0].input for layer in (model.a, model.b)] == [(1, 3), (1, 5)]
        assert pquant.unconverted(model, example) == ["mul (model)"]
        pquant.calibrate(model, [example])
        pquant.trace_ranges(model, [example])
    assert type(pquant.compress(net, None, FIXED, (x,)).b) is nn.Linear, "the example does not reach it"
    pruned = pquant.prune_one_shot(net, Wanda(sparsity=0.5), [{"x": x, "times": 2, "more": {"y": [y]}}])
    assert 0.4 < pquant.sparsity(pruned) < 0.6


def test_an_example_that_is_a_tuple_without_a_tensor() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, text: str) -> Tensor:
            return self.fc(torch.tensor([[len(text)] * 3], dtype=torch.float))

    assert isinstance(pquant.compress(Own(), None, AUTO, ("word",)).fc, PQDense)


@pytest.mark.parametrize("example", [[torch.ones(2, 3)], 3, np.ones((2, 3)), "x"], ids=lambda example: type(example).__name__)
def test_an_example_of_another_type_is_refused(example: Any) -> None:
    expected = rf"must be a tensor, a tuple .* or a dict .*, got a {type(example).__name__}"
    net = nn.Linear(3, 2)
    model = pquant.compress(net, None, AUTO, torch.ones(2, 3))
    for use in (
        lambda: pquant.compress(net, None, FIXED, example),
        lambda: pquant.unconverted(model, example),
        lambda: pquant.calibrate(model, [example]),
        lambda: pquant.prune_one_shot(net, Wanda(sparsity=0.5), [example]),
    ):
        with pytest.raises(ConfigError, match=expected):
            use()
