"""Layers that a model holds twice: in lists, tuples, sets and dictionaries too; and what the user has hung on them: hooks, a forward."""

from collections import namedtuple
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pquant
from pquant.errors import ConfigError
from pquant.layers import PQDense
from pquant.layers.norm import ChannelAffine
from pquant.pruning import Magnitude
from pquant.quantization import Quantization

from .test_pools import FIXED

Pair = namedtuple("Pair", ["first", "second"])
HOLDERS: dict[str, tuple[Callable[[list[nn.Module]], Any], Callable[[Any], list[nn.Module]]]] = {
    "list": (list, list),
    "tuple": (tuple, list),
    "named tuple": (lambda layers: Pair(layers[0], layers[1:]), lambda held: [held.first, *held.second]),
    "dictionary": (lambda layers: dict(enumerate(layers)), lambda held: list(held.values())),
    "keys": (lambda layers: {layer: index for index, layer in enumerate(layers)}, list),
    "set": (lambda layers: [{layer} for layer in layers], lambda held: [next(iter(one)) for one in held]),
    "frozen set": (lambda layers: [frozenset([layer]) for layer in layers], lambda held: [next(iter(one)) for one in held]),
    "nested": (lambda layers: {"all": [(layers[:2],), {"last": layers[2:]}]}, lambda held: [*held["all"][0][0], *held["all"][1]["last"]]),
    "a module that is not registered": (lambda layers: [nn.Sequential(*layers)], lambda held: list(held[0])),
}


class Held(nn.Module):
    """Runs its layers from another place than that where they are registered."""

    def __init__(self, hold: Callable[[list[nn.Module]], Any], layers_of: Callable[[Any], list[nn.Module]]) -> None:
        super().__init__()
        self.a, self.n, self.b, self.layers_of = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3), layers_of
        self.held = hold([self.a, self.n, self.b])
        self.held_twice = self.held

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers_of(self.held):
            x = layer(x)
        return x


@pytest.mark.parametrize("example", [True, False])
@pytest.mark.parametrize("kind", HOLDERS)
def test_layers_are_replaced_wherever_a_module_holds_them(kind: str, example: bool) -> None:
    torch.manual_seed(0)
    hold, layers_of = HOLDERS[kind]
    net, x = Held(hold, layers_of), torch.randn(7, 6)
    model = pquant.compress(net, Magnitude(sparsity=0.5), FIXED, x if example else None)
    assert layers_of(model.held) == [model.a, model.n, model.b] and isinstance(model.a, PQDense)
    assert model.held_twice == model.held
    assert layers_of(net.held) == [net.a, net.n, net.b] and type(net.a) is nn.Linear
    pquant.set_stage(model, pquant.Stage.TRAIN, pquant.Horizon(1, 1))
    pquant.set_stage(model, pquant.Stage.FINETUNE)
    model.eval()
    assert torch.equal(model(x), model.b(model.n(model.a(x)))) and not torch.equal(model(x), net.eval()(x))
    final = pquant.finalize(model)
    assert layers_of(final.held) == [final.a, final.n, final.b] and isinstance(final.n, ChannelAffine)
    assert torch.equal(final(x), model(x)) and pquant.sparsity(final) == pquant.sparsity(model) == pytest.approx(22 / 45)


@pytest.mark.parametrize("example", [True, False])
@pytest.mark.parametrize(
    "hold",
    [lambda layer: SimpleNamespace(layer=layer), lambda layer: partial(layer), lambda layer: layer.__call__],
    ids=["namespace", "partial", "bound method"],
)
def test_a_layer_in_an_object_that_compress_cannot_change_is_refused_by_name(hold: Callable[[nn.Module], Any], example: bool) -> None:
    net = nn.Sequential(nn.Sequential(nn.Linear(6, 3)))
    net.other = hold(net[0][0])
    with pytest.raises(ConfigError, match=r"layer '0\.0' is also held by"):
        pquant.compress(net, None, FIXED, torch.randn(2, 6) if example else None)


@pytest.mark.parametrize("example", [True, False])
def test_a_layer_with_a_forward_of_its_own_stays_float_and_is_named(example: bool, caplog: pytest.LogCaptureFixture) -> None:
    net, x = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)), torch.randn(4, 6)
    net[1].forward = lambda x, layer=net[1]: 3 * nn.Linear.forward(layer, x)
    model = pquant.compress(net, None, FIXED, x if example else None)
    assert type(model[0]) is PQDense and type(model[1]) is nn.Linear and pquant.unconverted(model) == ["Linear (1)"]
    assert "stays float: Linear (1): it has a forward of its own" in caplog.messages
    assert torch.equal(model(x), net[1](model[0](x)))


def every_kind() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Tanh(), nn.Flatten(), nn.Linear(4, 2)
    )


@pytest.mark.parametrize("section", [None, FIXED], ids=["off", "fixed"])
def test_hooks_stay_on_every_kind_of_layer(section: Quantization | None) -> None:
    net, x, seen = every_kind(), torch.randn(2, 3, 8, 8), list[str]()
    for name, layer in net.named_children():
        layer.register_forward_pre_hook(lambda *_, name=name: seen.append(f"{name} before"))
        layer.register_forward_hook(lambda *_, name=name: seen.append(f"{name} after"))
        layer.register_full_backward_pre_hook(lambda *_, name=name: seen.append(f"{name} before backward"))
        layer.register_full_backward_hook(lambda *_, name=name: seen.append(f"{name} backward"))
        layer.register_forward_hook(lambda module, args, kwargs, y: y * 2, with_kwargs=True)
    model = pquant.compress(net, None, section, x)
    if section is None:
        torch.testing.assert_close(model.eval()(x), net.eval()(x))
    for one in (model, pquant.finalize(model)):
        leaf, names = x.clone().requires_grad_(), [name for name, _ in net.named_children()]
        seen.clear()
        one(leaf).sum().backward()
        assert sorted(seen) == sorted(f"{name} {when}" for name in names for when in ("before", "after", "before backward", "backward"))
    assert torch.equal(pquant.finalize(model)(x), model.eval()(x))


def test_a_hook_that_is_a_method_of_the_model_is_called_on_the_compressed_one() -> None:
    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.seen = nn.ReLU(), 0
            self.act.register_forward_hook(self.count)

        def count(self, *_: Any) -> None:
            self.seen += 1

        def forward(self, x: Tensor) -> Tensor:
            return self.act(x)

    model = pquant.compress(Watching(), None, FIXED)
    model(torch.randn(2, 3))
    assert model.seen == 1
