from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pquant.errors import ConfigError, ExportError
from pquant.export import ONNX
from pquant.layers.activation import KINDS
from pquant.models import CNN, MLP

from .nets import Residual, compressed_net, mlp, net, splits
from .test_arithmetic import COARSE, HGQ, NETS, SEQUENCE, VECTOR, Between, Learned

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("qonnx")
FEW = {"vectors": 300, "qonnx_vectors": 4}
QUICK = ("max pool, padded", "transposed", "transposed, dilated", "max and min", "softmax", "einsum", "outer", "norm", "constants", "prelu", "mul")


class Positions(Learned):
    """All positions and the class token."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1) + self.position
        return self.dense(x * self.gamma).flatten(1)


CASES = NETS | {"constants": (Positions(), SEQUENCE)}


def kinds(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


@pytest.mark.parametrize("overflow", ["SAT", "SAT_SYM", "WRAP"])
@pytest.mark.parametrize("rounding", ["TRN", "TRN_ZERO", "RND", "RND_CONV", "RND_ZERO", "RND_INF", "RND_MIN_INF"])
def test_every_mode(tmp_path: Path, rounding: str, overflow: str) -> None:
    model = net(MLP([None, 5, None], (6,), 3, "tanh", True), (6,), round_mode=rounding, overflow_mode_data=overflow, quantize_output=True)
    figures = ONNX(**FEW).export(model, splits((6,)), tmp_path)
    assert figures["onnx/model_bit_exact"] and figures["onnx/qonnx_bit_exact"] and figures["onnx/vectors"] == 300
    assert figures["onnx/dialect"] == "exact"
    assert ("onnx/qdq_bit_exact" in figures) == (rounding == "RND_CONV" and overflow != "WRAP")


@pytest.mark.parametrize("options", [{"use_relu_multiplier": True}, {"use_hgq": True, "data_granularity": "per_weight"}])
@pytest.mark.parametrize(
    ("model", "shape"), [(CNN((1, 4, 4), 3, (2,)), (1, 4, 4)), (Residual(), (1, 4, 4)), (nn.Sequential(nn.Conv1d(2, 3, 3), nn.Flatten()), (2, 5))]
)
def test_layers(tmp_path: Path, model: nn.Module, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    assert ONNX(**FEW).export(net(model, shape, **options), splits(shape), tmp_path)["onnx/qonnx_bit_exact"]


def exported(model: nn.Module, shape: tuple[int, ...], folder: Path, dialect: Any = "exact", **options: Any) -> None:
    exporter = ONNX(vectors=200, qonnx_vectors=3, dialect=dialect)
    exporter.check(compressed_net(model, shape, **COARSE | options), shape)
    assert exporter.export(net(model, shape, **COARSE | options), splits(shape), folder)["onnx/qonnx_bit_exact"]


@pytest.mark.parametrize("options", [{}, pytest.param(HGQ, marks=pytest.mark.slow)], ids=["fixed", "hgq"])
@pytest.mark.parametrize("kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in CASES])
def test_arithmetic(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    exported(*CASES[kind], tmp_path, **options)


@pytest.mark.parametrize("kind", [kind if kind in ("gelu", "tanh") else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS])
def test_every_activation_is_a_table(tmp_path: Path, kind: str) -> None:
    exported(Between(KINDS[kind]()), VECTOR, tmp_path, use_real_tanh=True)
    found = kinds(tmp_path / "export" / "onnx" / "model.onnx")
    assert ("Gather" in found) == (kind != "relu") and not found & {"Tanh", "Gelu", "Exp"}


def test_which_operators_the_files_have(tmp_path: Path) -> None:
    ONNX(**FEW).export(net(mlp(nn.ReLU()), (6,), round_mode="RND_CONV"), splits((6,)), tmp_path)
    folder = tmp_path / "export" / "onnx"
    assert "Quant" in kinds(folder / "qonnx.onnx")
    assert not kinds(folder / "model.onnx") & {"Quant", "QuantizeLinear", "Identity"}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds(folder / "qdq.onnx")


def test_layers_are_operators(tmp_path: Path) -> None:
    for kind, operator in (("max pool", "MaxPool"), ("transposed", "ConvTranspose"), ("einsum", "Einsum"), ("sum over particles", "ReduceSum")):
        exported(*NETS[kind], tmp_path / kind)
        assert operator in kinds(tmp_path / kind / "export" / "onnx" / "model.onnx")


def test_float32_values_of_a_table_are_no_ties() -> None:
    from pquant.export.onnx.values import in_float32

    assert in_float32(np.array([0.5, 0.5 - 2**-30, 0.5 + 2**-30])).tolist() == [0.5, 0.5 - 2**-25, 0.5 + 2**-24]


def test_a_file_that_differs_is_an_error() -> None:
    from pquant.export.onnx.exporter import _compare

    with pytest.raises(ExportError, match=r"model.onnx and the model differ at output \[1\], vector 0: the file gives 2, the model 1"):
        _compare("model", np.array([[0.0, 2.0]]), np.array([[0.0, 1.0]]))
    with pytest.raises(ExportError, match=r"model.onnx gives outputs of shape \(2, 1\), the model of shape \(1, 2\)"):
        _compare("model", np.zeros((3, 2, 1)), np.zeros((3, 1, 2)))


def test_modes_without_an_operator_are_refused() -> None:
    with pytest.raises(ConfigError, match="WRAP_SM"):
        ONNX().check(compressed_net(mlp(nn.ReLU()), (6,), overflow_mode_data="WRAP_SM"), (6,))


def test_a_table_that_is_too_large_is_said_before_training() -> None:
    model = compressed_net(Between(nn.LayerNorm(16), features=16, after=16), VECTOR, **COARSE | {"default_data_fractional_bits": 8})
    with pytest.raises(ConfigError, match="layer 'function': a table of .* entries"):
        ONNX().check(model, VECTOR)
