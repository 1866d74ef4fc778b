import shutil
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from pquant.errors import ConfigError
from pquant.export import HLS4ML
from pquant.export.check import checked
from pquant.export.hls4ml import describe
from pquant.models import CNN

from .nets import compressed_net, mlp, net, splits

pytest.importorskip("hls4ml")


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
@pytest.mark.parametrize(
    ("rounding", "overflow"),
    [("RND", "SAT"), *(pytest.param(*modes, marks=pytest.mark.slow) for modes in (("TRN", "WRAP"), ("RND_CONV", "SAT_SYM"), ("RND_INF", "SAT")))],
)
def test_the_compiled_project_equals_the_model(tmp_path: Path, rounding: str, overflow: str) -> None:
    model = net(mlp(nn.ReLU()), (6,), round_mode=rounding, overflow_mode_data=overflow, quantize_output=True)
    figures = HLS4ML(vectors=300).export(model, splits((6,)), tmp_path)
    assert figures == {"hls4ml/vectors": 300, "hls4ml/bit_exact": True}
    assert "ap_fixed" in (tmp_path / "export" / "hls4ml" / "firmware" / "defines.h").read_text()


def test_precisions_are_those_of_the_model() -> None:
    layers, precisions = describe(checked(net(mlp(nn.ReLU()), (6,)), (6,)))
    assert [layer["name"] for layer in layers] == ["model_inp", *(f"layer_{name}" for name in ("0_input", "0", "1_input", "2"))]
    assert precisions["layer_1_input"] == {"result": "ufixed<5,2,RND,SAT>"} and precisions["model_inp"] == {"result": "fixed<6,3,RND,SAT>"}
    assert precisions["layer_0"]["weight"] == "fixed<5,1>" and precisions["layer_0"]["accum"] == precisions["layer_0"]["result"]


@pytest.mark.parametrize(
    ("model", "shape", "options", "said"),
    [
        (CNN((1, 4, 4), 3, (2,)), (1, 4, 4), {}, "'blocks.0.conv' is a PQConv2d"),
        (mlp(nn.Tanh()), (6,), {}, "'1' is a PQActivation of another kind"),
        (mlp(nn.ReLU()), (6,), {"data_granularity": "per_channel"}, "'0' has data of several formats"),
    ],
)
def test_what_it_does_not_take(model: nn.Module, shape: tuple[int, ...], options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        HLS4ML().check(compressed_net(model, shape, **options), shape)
