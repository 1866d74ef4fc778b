import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pquant.errors import ConfigError, ConstantOutputError
from pquant.export import HLS4ML, ONNX, RTL
from pquant.export.check import checked
from pquant.export.constant import check_outputs
from pquant.export.integers import verify
from pquant.export.replay import input_format
from pquant.export.vectors import test_vectors as make_vectors
from pquant.layers import finalize

from .nets import compressed_net, mlp, net, splits


class Branches(nn.Module):
    """Two branches, of which the second gives zeros, before the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.dead, self.last = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) + self.dead(x))


def silenced(model: nn.Module, layer: str, **settings: Any) -> nn.Module:
    compressed = compressed_net(model, (6,), **settings)
    with torch.no_grad():
        compressed.get_submodule(layer).weight.zero_()
    return finalize(compressed)


def check(model: nn.Module, classes: tuple[str, ...] = ()) -> None:
    graph = checked(model, (6,))
    check_outputs(graph, verify(model, graph, make_vectors(splits((6,)).test, input_format(graph), 200)), classes)


@pytest.mark.parametrize(("layer", "count"), [("0", 30), ("2", 15)])
def test_a_layer_of_zeros_is_named_with_what_to_change(layer: str, count: int) -> None:
    found = rf"same output on all 200 vectors: nothing of its input passes layer '{layer}' \(all {count} weights are 0\); lower quantization.hgq_beta"
    with pytest.raises(ConstantOutputError, match=found):
        check(silenced(mlp(nn.ReLU()), layer))


def test_of_branches_the_one_that_ends_all_is_named() -> None:
    check(silenced(Branches(), "dead"))
    with pytest.raises(ConfigError, match=r"layer 'last' \(all 15 weights are 0\)"):
        compressed = compressed_net(Branches(), (6,))
        with torch.no_grad():
            compressed.dead.weight.zero_()
            compressed.last.weight.zero_()
        check(finalize(compressed))


def test_an_output_without_bits_and_one_that_does_not_differ_are_told_apart() -> None:
    no_bits = {"layer_specific": {"0": {"output": {"i": -3, "f": 3, "k": False}}}, "quantize_output": True}
    with pytest.raises(ConfigError, match=r"layer '0' \(its output has no bits\)"):
        check(net(mlp(nn.ReLU()), (6,), **no_bits))
    compressed = compressed_net(mlp(nn.ReLU()), (6,))
    with torch.no_grad():
        compressed.get_submodule("0").weight.abs_().neg_().mul_(0.01)
        compressed.get_submodule("0").bias.fill_(-8.0)
    with pytest.raises(ConfigError, match=r"layer '[01]' \("):
        check(finalize(compressed))


def test_a_single_constant_output_is_a_warning_with_its_class(caplog: pytest.LogCaptureFixture) -> None:
    compressed = compressed_net(mlp(nn.ReLU()), (6,))
    with torch.no_grad():
        compressed.get_submodule("2").weight[1] = 0
        compressed.get_submodule("2").bias[1] = 0.25
    model = finalize(compressed)
    with caplog.at_level(logging.WARNING):
        check(model, ("g", "q", "t"))
        check(model)
    assert caplog.messages == [f"output 1{name} is 0.25 on all 200 vectors: the model ignores its input there" for name in (" ('q')", "")]


@pytest.mark.parametrize(("exporter", "package"), [(RTL(simulator="emulator"), "alkaid"), (ONNX(), "qonnx"), (HLS4ML(), "hls4ml")])
def test_every_exporter_refuses_it_before_it_writes(exporter: Any, package: str, tmp_path: Path) -> None:
    pytest.importorskip(package)
    with pytest.raises(ConstantOutputError, match="layer '0'"):
        exporter.export(silenced(mlp(nn.ReLU()), "0"), splits((6,)), tmp_path)
    assert not list(tmp_path.iterdir())
