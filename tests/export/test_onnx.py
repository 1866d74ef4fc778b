from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from pquant.errors import ConfigError, ExportError
from pquant.export import ONNX
from pquant.models import CNN, MLP

from .nets import Residual, compressed_net, mlp, net, splits

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("qonnx")
FEW = {"vectors": 300, "qonnx_vectors": 4}


def kinds(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


@pytest.mark.parametrize("overflow", ["SAT", "SAT_SYM", "WRAP"])
@pytest.mark.parametrize("rounding", ["TRN", "TRN_ZERO", "RND", "RND_CONV", "RND_ZERO", "RND_INF", "RND_MIN_INF"])
def test_every_mode(tmp_path: Path, rounding: str, overflow: str) -> None:
    model = net(MLP([None, 5, None], (6,), 3, "tanh", True), (6,), round_mode=rounding, overflow_mode_data=overflow, quantize_output=True)
    figures = ONNX(**FEW).export(model, splits((6,)), tmp_path)
    assert figures["onnx/model_bit_exact"] and figures["onnx/qonnx_bit_exact"] and figures["onnx/vectors"] == 300
    assert ("onnx/qdq_bit_exact" in figures) == (rounding == "RND_CONV" and overflow != "WRAP")


@pytest.mark.parametrize("options", [{"use_relu_multiplier": True}, {"use_hgq": True, "data_granularity": "per_weight"}])
@pytest.mark.parametrize(
    ("model", "shape"), [(CNN((1, 4, 4), 3, (2,)), (1, 4, 4)), (Residual(), (1, 4, 4)), (nn.Sequential(nn.Conv1d(2, 3, 3), nn.Flatten()), (2, 5))]
)
def test_layers(tmp_path: Path, model: nn.Module, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    assert ONNX(**FEW).export(net(model, shape, **options), splits(shape), tmp_path)["onnx/qonnx_bit_exact"]


def test_which_operators_the_files_have(tmp_path: Path) -> None:
    ONNX(**FEW).export(net(mlp(nn.ReLU()), (6,), round_mode="RND_CONV"), splits((6,)), tmp_path)
    folder = tmp_path / "export" / "onnx"
    assert "Quant" in kinds(folder / "qonnx.onnx")
    assert not kinds(folder / "model.onnx") & {"Quant", "QuantizeLinear"}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds(folder / "qdq.onnx")


def test_a_file_that_differs_is_an_error() -> None:
    from pquant.export.onnx import _compare

    with pytest.raises(ExportError, match=r"model.onnx and the model differ at output \[1\], vector 0: the file gives 2, the model 1"):
        _compare("model", np.array([[0.0, 2.0]]), np.array([[0.0, 1.0]]))


def test_modes_without_an_operator_are_refused() -> None:
    with pytest.raises(ConfigError, match="WRAP_SM"):
        ONNX().check(compressed_net(mlp(nn.ReLU()), (6,), overflow_mode_data="WRAP_SM"), (6,))
