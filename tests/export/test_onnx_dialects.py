"""QONNX for hls4ml, compiled by it, and for FINN, whose thresholds round halves up."""

import contextlib
import importlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pquant.errors import ConfigError
from pquant.export import ONNX
from pquant.layers.merge import Merge
from pquant.models import MLP

from .nets import compressed_net, mlp, net, splits
from .test_arithmetic import COARSE, IMAGE, NETS, SEQUENCE, VECTOR, Between, Pair

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("qonnx")
CASES = importlib.import_module("tests.export.test_onnx").CASES


class Shortcut(nn.Module):
    """Convolutions with a batch norm, a depthwise one, a shortcut around them, pools, and a value that two layers quantize."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.third, self.relu, self.mean, self.most = nn.Conv2d(4, 4, 1, bias=False), nn.ReLU(), nn.AvgPool2d(2), nn.MaxPool2d(2)
        self.dense = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.norm(x) + self.second(self.relu(x))
        x = self.mean(self.relu(self.third(x) - x))
        return self.dense(self.most(x).flatten(1))


class Joined(nn.Module):
    """Concatenated convolutions over one axis, a hard tanh, rows of a dense layer, and a sum of unquantized values."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm, self.tanh = nn.Conv1d(2, 3, 3, padding=2, dilation=2), nn.Conv1d(2, 1, 1), nn.BatchNorm1d(4), nn.Tanh()
        self.dense, self.last, self.other = nn.Linear(4, 2), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(torch.cat((self.a(x), self.b(x)), 1))
        x = self.dense(self.tanh(x).transpose(1, 2)).flatten(1)
        return self.last(x) + self.other(x)


def conv_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, stride=2), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3, 2))


MODELS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "mlp": (MLP([None, 5, None], (6,), 3, "tanh", True), (6,)),
    "conv": (conv_net(), IMAGE),
    "residual": (Shortcut(), IMAGE),
    "joined": (Joined(), (2, 4)),
}
FORMATS: dict[str, Any] = {"use_relu_multiplier": True, "default_data_fractional_bits": 3, "default_weight_fractional_bits": 4}
HLS4ML = ("max and min", "two values", "constants", "matmul", "outer", "jedi", "rnn", "nearest", "mean of four", "functional pools", "numbers")
FINN = ("max pool", "relu", "numbers", "power of two", "negative factor", "add", "sub", "mul")


def exported(case: tuple[nn.Module, tuple[int, ...]], dialect: Any, folder: Path, count: int = 3, **options: Any) -> Path:
    """Export a model whose biases are not 0."""
    model, shape = case
    exporter = ONNX(vectors=200, qonnx_vectors=count, dialect=dialect)
    exporter.check(compressed_net(model, shape, **options), shape)
    figures = exporter.export(net(model, shape, **options), splits(shape), folder)
    assert figures["onnx/qonnx_bit_exact"] and figures["onnx/dialect"] == dialect
    return folder / "export" / "onnx" / "qonnx.onnx"


def vectors(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    described, arrays = json.loads((folder / "export" / "integers.json").read_text()), np.load(folder / "export" / "integers.npz")
    inputs, outputs = (np.ldexp(arrays[f"vectors.{part}"].astype(np.float64), -described["vectors"][part]["f"]) for part in ("inputs", "outputs"))
    assert len(np.unique(outputs)) > 1
    return inputs.astype(np.float32), outputs


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("mlp", {"round_mode": "RND", "quantize_output": True}),
        ("conv", {"round_mode": "TRN"}),
        ("residual", {"round_mode": "RND"}),
        *(
            pytest.param(kind, {"round_mode": mode, "overflow_mode_data": "SAT_SYM"}, marks=pytest.mark.slow)
            for kind in MODELS
            for mode in ("RND", "RND_CONV", "TRN")
        ),
        *(pytest.param(kind, COARSE, marks=pytest.mark.slow) for kind in HLS4ML),
    ],
)
def test_hls4ml_compiles_what_it_reads(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    hls4ml = pytest.importorskip("hls4ml")
    path = exported((MODELS | CASES)[kind], "hls4ml", tmp_path, **FORMATS | options)
    model = onnx.load(path)
    with contextlib.redirect_stdout(io.StringIO()):
        config = hls4ml.utils.config.config_from_onnx_model(model, granularity="name", backend="Vitis", default_precision="fixed<32,16>")
        project = hls4ml.converters.convert_from_onnx_model(model, output_dir=str(tmp_path / "hls"), backend="Vitis", hls_config=config)
        project.compile()
    inputs, outputs = vectors(tmp_path)
    assert np.array_equal(project.predict(np.ascontiguousarray(inputs)).reshape(outputs.shape), outputs)


@pytest.mark.parametrize("rounding", ["TRN", "RND"])
@pytest.mark.parametrize("kind", [*MODELS, *FINN])
def test_finn_rounds_halves_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, rounding: str) -> None:
    from qonnx.custom_op.general import intquant

    from pquant.export.onnx.exporter import run_qonnx

    path = exported((MODELS | CASES)[kind], "finn", tmp_path, round_mode=rounding, **FORMATS if kind in MODELS else COARSE)
    inputs, outputs = vectors(tmp_path)
    monkeypatch.setattr(intquant, "resolve_rounding_mode", lambda mode: lambda x: np.floor(x + 0.5))
    assert np.array_equal(run_qonnx(path.read_bytes(), inputs[:20]), outputs[:20])
    nodes = {node.output[0]: node for node in onnx.load(path).graph.node}
    constants = {constant.name for constant in onnx.load(path).graph.initializer}
    data = [node for node in nodes.values() if node.op_type == "Quant" and node.input[0] not in constants]
    unsigned = [node for node in data if not next(part.i for part in node.attribute if part.name == "signed")]
    assert len(data) > 1 and all(nodes[node.input[0]].op_type == "Relu" for node in unsigned)


@pytest.mark.parametrize("integer", [0, -1], ids=["a sign", "none"])
@pytest.mark.parametrize("layer", ["b", "merge"])
@pytest.mark.parametrize("dialect", ["hls4ml", "finn"])
def test_data_of_a_sign_alone_or_of_no_bits(tmp_path: Path, dialect: Any, layer: str, integer: int) -> None:
    few = {"k": True, "i": integer, "f": 0}
    exported((Pair(Merge("sub")), VECTOR), dialect, tmp_path, 30, layer_specific={"b": {"output": few} if layer == "merge" else {"input": few}})
    assert np.ptp(vectors(tmp_path)[1], 0).any()


@pytest.mark.parametrize("kind", FINN)
def test_finn_converts_what_it_reads(tmp_path: Path, kind: str) -> None:
    convert = pytest.importorskip("finn.transformation.qonnx.convert_qonnx_to_finn")
    from qonnx.core.modelwrapper import ModelWrapper

    from pquant.export.onnx.exporter import run_qonnx

    path = exported(NETS[kind], "finn", tmp_path, **COARSE)
    converted = ModelWrapper(str(path)).transform(convert.ConvertQONNXtoFINN())
    inputs, outputs = vectors(tmp_path)
    assert np.array_equal(run_qonnx(converted.model.SerializeToString(), inputs[:20]), outputs[:20])
    assert converted.get_nodes_by_op_type("MultiThreshold") and not converted.get_nodes_by_op_type("Quant")


@pytest.mark.parametrize("kind", [*MODELS, "constants", "jedi"])
def test_hls4ml_reads_no_other_operator(tmp_path: Path, kind: str) -> None:
    path = exported((MODELS | CASES)[kind], "hls4ml", tmp_path, **FORMATS if kind in MODELS else COARSE)
    found = {(node.domain.rpartition(".")[2], node.op_type) for node in onnx.load(path).graph.node}
    known = {("", name) for name in ("Add", "Sub", "Mul", "MatMul", "Reshape", "Transpose", "Concat")}
    assert found <= known | {("channels_last", "Conv"), ("channels_last", "MaxPool"), ("general", "Quant")}


@pytest.mark.parametrize(
    ("dialect", "case", "options", "said"),
    [
        ("hls4ml", (mlp(nn.ReLU()), (6,)), {"round_mode": "RND_ZERO"}, "layer '0' has round_mode RND_ZERO: use quantization.round_mode=TRN or RND"),
        ("finn", (mlp(nn.ReLU()), (6,)), {"round_mode": "RND_CONV"}, "layer '0' has round_mode RND_CONV: use quantization.round_mode=TRN or RND"),
        ("finn", (mlp(nn.ReLU()), (6,)), {"overflow_mode_data": "WRAP"}, "layer '0' has overflow_mode WRAP: use quantization.overflow_mode_data=SAT"),
        ("hls4ml", (mlp(nn.ReLU()), (6,)), {"data_granularity": "per_channel"}, "layer '0' has data of several formats: use quantization.data_gran"),
        ("hls4ml", (mlp(nn.Tanh()), (6,)), {"use_real_tanh": True, "quantize_output": True}, "layer '1' is a tanh, which needs a table"),
        ("finn", NETS["softmax"], COARSE, "layer 'function' is a PQSoftmax, which is not supported"),
        ("finn", NETS["sum over particles"], COARSE, "sum in 'model' reduces axes"),
        ("finn", NETS["two values"], COARSE, "maximum in 'model' selects or repeats values"),
        ("finn", NETS["matmul"], COARSE, "layer 'merge' is 'matmul' of two tensors"),
        ("finn", NETS["constants"], COARSE, "cat in 'model' moves constants"),
        ("hls4ml", NETS["mean over particles"], COARSE, "layer 'mean' averages 3 values, not a power of 2"),
        ("hls4ml", NETS["transposed"], COARSE, "layer '0' is a PQConvTranspose2d, which is not supported"),
        ("hls4ml", NETS["max pool, padded"], COARSE, "layer '2' is a pool that pads both ends of an axis differently"),
        ("hls4ml", NETS["max pool, dilated"], COARSE, "layer '1' is a dilated pool"),
        ("hls4ml", (nn.Sequential(nn.Conv2d(4, 4, 1, groups=2)), (4, 2, 2)), COARSE, "layer '0' has 2 groups of channels"),
        ("hls4ml", (nn.Sequential(nn.Conv1d(3, 2, 3, padding=1, padding_mode="circular")), SEQUENCE), COARSE, "layer '0' pads by circular"),
        ("finn", (nn.Sequential(nn.Conv3d(1, 2, 1)), (1, 2, 2, 2)), COARSE, "layer '0' has three spatial axes"),
        ("hls4ml", (nn.Sequential(nn.Conv1d(3, 2, 1), nn.AvgPool1d(3)), SEQUENCE), COARSE, "layer '1' averages 3 values, not a power of 2"),
        ("hls4ml", (Between(lambda x: x.roll(1, 1), 600, 600), VECTOR), COARSE, "roll in 'model' selects values with a matrix of 360000 entries"),
    ],
)  # fmt: skip
def test_what_a_dialect_cannot_express_is_said_before_training(dialect: Any, case: Any, options: dict[str, Any], said: str) -> None:
    model, shape = case
    with pytest.raises(ConfigError, match=said):
        ONNX(dialect=dialect).check(compressed_net(model, shape, **options), shape)
