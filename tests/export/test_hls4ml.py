import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pquant.errors import ConfigError, ExportError
from pquant.export import HLS4ML
from pquant.export.hls4ml.exporter import _has_da4ml
from pquant.export.hls4ml.layout import channels_last, same, torch_order, transposition
from pquant.export.hls4ml.lower import lower
from pquant.export.hls4ml.project import Target
from pquant.export.hls4ml.simulate import simulate
from pquant.export.recording import record
from pquant.models import CNN, ResNet20

from .nets import compressed_net, mlp, net, splits

pytest.importorskip("hls4ml")

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
HGQ = {"use_hgq": True, "granularity": "per_weight", "data_granularity": "per_weight"}


class Calls(nn.Module):
    """A function of the input and of layers."""

    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.function = nn.ModuleList(layers), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.layers)


def varied(model: nn.Module, shape: tuple[int, ...], **options: Any) -> nn.Module:
    """Return a finalized net whose trained bits differ by value."""
    from pquant.layers import finalize
    from pquant.quantization.hgq import HGQQuantizer

    compressed = compressed_net(model, shape, **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for quantizer in (module for module in compressed.modules() if isinstance(module, HGQQuantizer)):
            for bits in quantizer.parameters():
                bits.add_(torch.randint(-1, 2, bits.shape, generator=generator))
    return finalize(compressed)


def residual() -> nn.Module:
    """Convolutions with a batch norm, a shortcut, a concatenation, both pools and a dense layer."""

    def forward(x: Tensor, *layers: nn.Module) -> Tensor:
        first, norm, second, relu, maximum, average, dense = layers
        y = relu(norm(first(x)))
        y = maximum(torch.cat([second(y) - y, y], 1))
        return dense(average(y).flatten(1))

    layers = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.AvgPool2d(2)
    return Calls(forward, *layers, nn.Linear(6, 3))


def deep_set() -> nn.Module:
    """Dense layers at several positions, a transposition, extremes, sums and products of data, a table and a softmax."""

    def forward(x: Tensor, *layers: nn.Module) -> Tensor:
        by_position, mix, dense, softmax = layers
        y = torch.relu(by_position(x))
        y = y * torch.sigmoid(mix(y.transpose(1, 2)).transpose(1, 2))
        return softmax(dense(torch.maximum(y.amax(1), y.sum(1) - 1)[:, 1:]))

    return Calls(forward, nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(3, 3), nn.Softmax(1))


def sequence() -> nn.Module:
    """A strided convolution with groups and dilation, a padded one, a hard tanh and a padded mean of three."""
    layers = nn.Conv1d(2, 4, 3, stride=2, groups=2, dilation=2), nn.Tanh(), nn.Conv1d(4, 2, 3, padding=1), nn.AvgPool1d(3, padding=1)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 2))


OUTPUT = {"quantize_output": True}
MODES = (("TRN", "WRAP"), ("RND_CONV", "SAT_SYM"), ("RND_INF", "SAT"), ("TRN_ZERO", "WRAP"), ("RND_ZERO", "SAT_SYM"), ("RND_MIN_INF", "SAT"))
CASES = [
    pytest.param(residual(), (2, 4, 4), {}, {}, id="residual"),
    pytest.param(deep_set(), (4, 3), OUTPUT, {}, id="deep set"),
    *(
        pytest.param(*values, id=name, marks=pytest.mark.slow)
        for name, values in {
            "sequence": (sequence(), (2, 13), {}, {}),
            "by value": (residual(), (2, 4, 4), HGQ, {}),
            "by channel": (sequence(), (2, 13), {"granularity": "per_channel", "data_granularity": "per_channel"}, {}),
            "deep set, stream": (deep_set(), (4, 3), OUTPUT, {"io_type": "stream"}),
            "tanh": (mlp(nn.Tanh()), (6,), {"use_real_tanh": True}, {}),
            "shift": (mlp(nn.ReLU()), (6,), {"use_relu_multiplier": True}, {}),
            "by layer": (mlp(nn.GELU()), (6,), {}, {"strategy_by_layer": {"0": "resource"}, "reuse_factor_by_layer": {"0": 3, "2": 2}}),
            "resnet": (ResNet20((1, 4, 4), 3, blocks=1), (1, 4, 4), {}, {"io_type": "stream", "strategy": "resource", "reuse_factor": 9}),
            **{backend: (CNN((1, 4, 4), 3, (2,)), (1, 4, 4), {}, {"backend": backend}) for backend in ("Vivado", "Catapult")},
            "Quartus": (CNN((1, 4, 4), 3, (2,)), (1, 4, 4), {}, {"backend": "Quartus", "strategy": "resource"}),
            "residual, stream": (residual(), (2, 4, 4), {}, {"io_type": "stream", "strategy": "resource", "reuse_factor": 6}),
            **{
                f"{rounding} {overflow}": (
                    mlp(nn.ReLU()),
                    (6,),
                    {"round_mode": rounding, "overflow_mode_data": overflow, "quantize_output": True},
                    {},
                )
                for rounding, overflow in (
                    ("TRN", "WRAP"),
                    ("RND_CONV", "SAT_SYM"),
                    ("RND_INF", "SAT"),
                    ("TRN_ZERO", "WRAP"),
                    ("RND_ZERO", "SAT_SYM"),
                )
            },
        }.items()
    ),
]


@needs_compiler
@pytest.mark.parametrize(("model", "shape", "options", "settings"), CASES)
def test_the_compiled_project_equals_the_model(
    tmp_path: Path, model: nn.Module, shape: tuple[int, ...], options: dict[str, Any], settings: dict[str, Any]
) -> None:
    figures = HLS4ML(vectors=300, **settings).export(varied(model, shape, **options), splits(shape), tmp_path)
    assert figures == {"hls4ml/vectors": 300, "hls4ml/bit_exact": True}
    text = (tmp_path / "export" / "hls4ml" / "README.md").read_text()
    assert "300 vectors" in text and str(settings.get("backend", "Vitis")) in text and ("(1, 2, 0)" in text) == (len(shape) == 3)


@needs_compiler
@pytest.mark.slow
@pytest.mark.skipif(not _has_da4ml(), reason="da4ml below 0.6 is not installed")
@pytest.mark.parametrize("io_type", ["parallel", "stream"])
def test_distributed_arithmetic(tmp_path: Path, io_type: Any) -> None:
    figures = HLS4ML(vectors=300, strategy="distributed_arithmetic", io_type=io_type).export(net(residual(), (2, 4, 4)), splits((2, 4, 4)), tmp_path)
    assert figures["hls4ml/bit_exact"]


def test_a_difference_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = np.zeros((64, 3))
    monkeypatch.setattr("pquant.export.hls4ml.exporter.simulate", lambda *_: wrong)
    with pytest.raises(ExportError, match=r"differ at output 0, vector \d+: the C\+\+ gives 0, the model -?[\d.]+"):
        HLS4ML(vectors=64).export(net(mlp(nn.ReLU()), (6,)), splits((6,)), tmp_path)


def test_a_program_that_ends_with_an_error_is_an_error_of_the_export(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="Cannot find hls4ml_config.yml"):
        simulate(tmp_path, np.zeros((1, 2)))


def test_types_are_those_of_the_model() -> None:
    project, given, output = lower(record(net(mlp(nn.ReLU()), (6,)), (6,)), Target())
    assert [layer["name"] for layer in project.layers] == ["layer_input", "layer_0", "layer_2"] and output.layer == "layer_2"
    assert project.types["layer_input"] == {"result": "fixed<6,3,RND,SAT>"} and same(given.order, torch_order((6,)))
    assert project.types["layer_0"]["result"] == "ufixed<5,2,RND,SAT>" and project.types["layer_0"]["weight"].startswith("fixed<5,1")


def test_channels_are_last_and_the_dense_layer_follows() -> None:
    project, given, _ = lower(record(net(nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(12, 2)), (2, 3, 3)), (2, 3, 3)), Target())
    assert same(given.order, channels_last((2, 3, 3))) and given.order.shape == (3, 3, 2)
    assert [layer["class_name"] for layer in project.layers] == ["InputLayer", "Conv2D", "Reshape", "Dense"]


@pytest.mark.parametrize(
    ("order", "wanted"),
    [
        (channels_last((2, 3, 4)), torch_order((2, 3, 4))),
        (torch_order((2, 3)), torch_order((2, 3)).T),
        (torch_order((24,)), channels_last((2, 3, 4))),
    ],
)
def test_transpositions(order: np.ndarray, wanted: np.ndarray) -> None:
    found = transposition(order, wanted)
    assert found is not None and same(order.reshape(found[0]).transpose(found[1]), wanted)
    assert transposition(torch_order((4,)), np.array([0, 2, 1, 3])[::-1]) is None


@pytest.mark.parametrize(
    ("model", "shape", "settings", "options", "said"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular")), (1, 4, 4), {}, {}, "'0': hls4ml pads with zeros only"),
        (nn.Sequential(nn.Conv3d(1, 2, 2)), (1, 3, 3, 3), {}, {}, "'0': hls4ml has no layer for a PQConv3d"),
        (nn.Sequential(nn.ConvTranspose2d(1, 2, 2)), (1, 3, 3), {}, {}, "'0': hls4ml has no layer for a PQConvTranspose2d"),
        (nn.Sequential(nn.Conv2d(2, 2, 2, groups=2)), (2, 3, 3), {"strategy": "resource"}, {}, "'0': groups and dilation become zero weights"),
        (nn.Sequential(nn.Conv2d(1, 2, 1), nn.MaxPool2d(2, dilation=2)), (1, 4, 4), {}, {}, "'1': hls4ml has no pool with dilation"),
        (nn.Sequential(nn.Conv2d(1, 2, 1), nn.AvgPool2d(2, 1)), (1, 4, 4), {"io_type": "stream"}, {}, "'1': hls4ml's pools of streams have stride"),
        (mlp(nn.GELU()), (6,), {"backend": "Catapult"}, {}, "'1': hls4ml has tables of any function for Vitis and Vivado only"),
        (mlp(nn.ReLU()), (6,), {"io_type": "stream"}, HGQ, "'0' has a format for each channel or value of its data"),
        (mlp(nn.ReLU()), (6,), {}, {"overflow_mode_data": "WRAP_SM"}, "'0' has overflow_mode WRAP_SM"),
        (Calls(lambda x, a, b: a(x) @ b(x), nn.Linear(3, 3), nn.Linear(3, 3)), (3, 3), {"io_type": "stream"}, {}, "multiplies data with data"),
        (mlp(nn.ReLU()), (6,), {"strategy_by_layer": {"l": "resource"}}, {}, "unknown layer with weights 'l'; valid: 0, 2"),
        (mlp(nn.ReLU()), (6,), {"strategy": "resource", "reuse_factor_by_layer": {"0": 5}}, {}, "reuse_factor_by_layer.0=5 .* 6 is the nearest"),
        (Calls(lambda x, a: a(F.pad(x, (1, 2), value=1.0)), nn.Linear(6, 3)), (3,), {}, {}, "pad"),
    ],
)
def test_what_is_refused_before_training(
    model: nn.Module, shape: tuple[int, ...], settings: dict[str, Any], options: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: name)
    with pytest.raises(ConfigError, match=said):
        HLS4ML(**settings).check(compressed_net(model, shape, **options), shape)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"backend": "Quartus"}, "strategy must be one of resource for backend Quartus, got 'latency'"),
        ({"strategy_by_layer": {"0": "resourc"}}, "strategy_by_layer.0 must be one of .* got 'resourc': did you mean 'resource'"),
        ({"reuse_factor_by_layer": {"0": 0}}, r"reuse_factor_by_layer.0 must be an integer in \[1, inf\), got 0"),
        ({"strategy": "distributed_arithmetic", "reuse_factor": 2}, "reuse_factor must be 1 with strategy=distributed_arithmetic"),
        ({"strategy": "distributed_arithmetic", "backend": "Catapult"}, "strategy must be one of latency, resource for backend Catapult"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        HLS4ML(**settings)


@pytest.mark.parametrize(("backend", "compiler"), [("oneAPI", "icpx"), ("Libero", "shls"), ("Vitis", r"g\+\+")])
def test_a_missing_compiler_is_said(backend: Any, compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=f"needs {compiler} on the PATH for backend={backend}"):
        HLS4ML(backend=backend, strategy="resource").check(compressed_net(mlp(nn.ReLU()), (6,)), (6,))


def test_a_reuse_factor_that_hls4ml_changes_is_told(caplog: pytest.LogCaptureFixture) -> None:
    HLS4ML(strategy="resource", reuse_factor=5).check(compressed_net(mlp(nn.ReLU()), (6,)), (6,))
    assert "reuse_factor=5 does not divide the products of all layers; hls4ml takes the nearest: 0: 6" in caplog.text


@needs_compiler
@pytest.mark.slow
def test_hls4mls_own_parser(tmp_path: Path) -> None:
    pytest.importorskip("hls4ml.converters.pytorch.pquant", reason="this hls4ml reads no layers of PQuantML")
    from hls4ml.converters import convert_from_pytorch_model
    from hls4ml.utils.config import config_from_pytorch_model

    model = net(mlp(nn.ReLU()), (6,))
    config = config_from_pytorch_model(model, input_shape=(6,))
    project = convert_from_pytorch_model(model, hls_config=config, output_dir=str(tmp_path / "project"), backend="Vitis")
    project.compile()
    x = torch.randn(100, 6)
    np.testing.assert_array_equal(project.predict(x.numpy()).reshape(100, 3), model(x).numpy())
