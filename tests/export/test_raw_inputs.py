import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pquant.data import Preprocessing, Splits
from pquant.data.splitting import Fractions
from pquant.errors import ConfigError
from pquant.export import ONNX, RTL
from pquant.export.check import checked
from pquant.export.formats import Format
from pquant.export.integers import verify
from pquant.export.raw_inputs import check_raw_inputs, deployed, raw_format
from pquant.export.replay import input_format
from pquant.export.vectors import test_vectors as make_vectors
from pquant.models import MLP

from .nets import mlp, net

RANGES = (3.0, 200.0, 0.01, 40.0, 1.0, 5000.0)


def table(standardize: Any = "power_of_two", **fields: Any) -> tuple[np.ndarray, Splits]:
    """Return raw features of very different size and offset, and their splits."""
    random = np.random.default_rng(0)
    x = random.normal(size=(300, 6)) * RANGES + np.array(RANGES) * [0, 3, -2, 1, 0, -5]
    classes = ["g", "q", "t"]
    return x, Fractions(standardize=standardize, **fields).split(x, random.integers(0, 3, 300), 0, classes, 0, [f"feature {at}" for at in range(6)])


def test_power_of_two_scales_are_near_the_deviation_and_offsets_near_the_mean() -> None:
    x, splits = table()
    done = splits.preprocessing
    assert done is not None and done.features[1] == "feature 1" and done.classes == ("g", "q", "t")
    assert (torch.frexp(done.scale).mantissa == 0.5).all() and (done.offset / done.scale * 8 % 1 == 0).all()
    train = splits.train.tensors[0]
    assert ((train.std(0) > 0.7) & (train.std(0) < 1.42)).all() and (train.mean(0).abs() <= 1 / 16 + 1e-6).all()
    rows = {tuple(row) for row in x.round(9)}
    raw = splits.test.tensors[0].double() * done.scale + done.offset
    assert np.abs(raw.numpy()[:, None] - np.array(sorted(rows))[None]).max(-1).min(-1).max() < 1e-2


@pytest.mark.parametrize("settings", [{}, {"use_hgq": True, "data_granularity": "per_weight"}, {"default_data_fractional_bits": 1}])
@pytest.mark.parametrize("rounding", ["RND", "TRN"])
def test_raw_inputs_give_what_standardized_ones_give(settings: dict[str, Any], rounding: str) -> None:
    x, splits = table()
    model = net(mlp(nn.ReLU()), (6,), round_mode=rounding, **settings)
    whole, raw = deployed(model, splits, True)
    form, done = input_format(checked(whole, (6,))), splits.preprocessing
    given = torch.from_numpy(form.quantize(x))
    with torch.no_grad():
        assert torch.equal(whole(given.float()), model(((given - done.offset) / done.scale).float()))
        assert torch.equal(whole(given.float()), model(torch.from_numpy((x - done.offset.numpy()) / done.scale.numpy()).float()))
    assert raw.input_shape == splits.input_shape and len(raw.test) == len(splits.test)
    graph = checked(whole, (6,))
    verified = verify(whole, graph, make_vectors(raw.test, input_format(graph), 300))
    assert verified.count == 300 and len(np.unique(verified.outputs)) > 3


def test_a_raw_format_covers_every_input_with_the_fewest_bits() -> None:
    form = Format(np.array([1, 1, 0, 0]), np.array([2, 2, 1, 0]), np.array([3, 3, 0, 0]), "TRN", "SAT")
    made = raw_format(form, np.array([0.0, 10.0, 2.25, 1.0]), np.array([1.0, 0.25, 4.0, 8.0]))
    # [-4, 3.875]; 10 + [-4, 3.875] / 4 = [9, 10.96875]; 2.25 + 4 * [0, 1] = 2.25 and 6.25; no bits
    assert (made.k.tolist(), made.i.tolist(), made.f.tolist()) == ([1, 0, 0, 0], [2, 4, 3, 0], [3, 5, 2, 0])
    assert (made.round_mode, made.overflow_mode) == ("TRN", "SAT")
    half = raw_format(dataclasses.replace(form, round_mode="RND"), np.array([0.0, 10.0, 2.25, 1.0]), np.array([1.0, 0.25, 4.0, 8.0]))
    assert (half.i.tolist(), half.f.tolist(), half.round_mode) == ([2, 4, 3, 0], [4, 6, 2, 0], "TRN")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": torch.tensor([1.0, 3, 1, 1, 1, 1])}, r"feature 'feature 1' is divided by 3, .*: train with data.standardize=power_of_two"),
        ({"note": "zeros are padding"}, "only shifts and scales: zeros are padding"),
    ],
)
def test_what_is_not_exact_is_refused(change: dict[str, Any], message: str) -> None:
    _, splits = table()
    with pytest.raises(ConfigError, match=message):
        check_raw_inputs(dataclasses.replace(splits, preprocessing=dataclasses.replace(splits.preprocessing, **change)))
    with pytest.raises(ConfigError, match="states its offsets and scales"):
        check_raw_inputs(dataclasses.replace(splits, preprocessing=None))


def test_channels_of_images_may_differ_but_not_their_pixels() -> None:
    _, splits = table()
    images = dataclasses.replace(splits, train=[(torch.zeros(2, 3, 3), torch.tensor(0))])
    offset = torch.tensor([0.5, 1.0])[:, None, None]
    found = check_raw_inputs(dataclasses.replace(images, preprocessing=Preprocessing(offset, torch.ones(()))))
    assert [one.tolist() for one in found] == [[0.5, 1.0], [1.0, 1.0]]
    with pytest.raises(ConfigError, match="one offset and scale for each channel"):
        check_raw_inputs(dataclasses.replace(images, preprocessing=Preprocessing(torch.rand(2, 3, 3), torch.ones(()))))


def test_the_logic_takes_raw_inputs_bit_for_bit_and_every_file_says_so(tmp_path: Path) -> None:
    pytest.importorskip("alkaid")
    _, splits = table()
    model = net(mlp(nn.ReLU()), (6,))
    exporter = RTL(raw_inputs=True, vectors=400, simulator="emulator", synthesize="no")
    assert exporter.export(model, splits, tmp_path)["rtl/bit_exact"] is True
    folder = tmp_path / "export"
    described = json.loads((folder / "rtl" / "formats.json").read_text())["data"]
    assert described == json.loads((folder / "integers.json").read_text())["data"]
    assert described["classes"] == ["g", "q", "t"] and described["input_scale"] == 1 and described["input_offset"] == 0
    text = (folder / "rtl" / "README.md").read_text()
    assert "Inputs are raw values" in text and "layer 'raw_inputs' shifts and scales them" in text and "| 2 | `feature 2` |" in text
    assert "| `0` |" in text and "| `2` |" in text


@pytest.mark.parametrize(("standardize", "words"), [(True, "It is not folded into the weights"), ("power_of_two", "All scales are powers of two")])
def test_the_constants_of_the_data_are_in_every_file(standardize: Any, words: str, tmp_path: Path) -> None:
    pytest.importorskip("alkaid")
    _, splits = table(standardize)
    RTL(vectors=200, simulator="emulator", synthesize="no").export(net(mlp(nn.ReLU()), (6,)), splits, tmp_path)
    done = splits.preprocessing
    for name in ("integers.json", "rtl/formats.json"):
        described = json.loads((tmp_path / "export" / name).read_text())["data"]
        assert described["input_offset"] == done.offset.tolist() and described["input_scale"] == done.scale.tolist()
        assert described["features"] == list(done.features) and described["classes"] == ["g", "q", "t"]
    text = (tmp_path / "export" / "rtl" / "README.md").read_text()
    assert words in text and "in this order: `g`, `q`, `t`." in text and f"| 1 | `feature 1` | {float(done.offset[1]):.9g} |" in text


def test_onnx_files_have_the_names_in_their_metadata(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("qonnx")
    _, splits = table()
    ONNX(vectors=64, qonnx_vectors=2, raw_inputs=True).export(net(mlp(nn.ReLU()), (6,)), splits, tmp_path)
    for name in ("model", "qonnx"):
        props = {one.key: json.loads(one.value) for one in onnx.load(tmp_path / "export" / "onnx" / f"{name}.onnx").metadata_props}
        assert props["classes"] == ["g", "q", "t"] and props["features"][0] == "feature 0" and props["input_scale"] == 1


def test_images_take_raw_pixels_by_channel() -> None:
    model = net(nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)), (2, 3, 3))
    done = Preprocessing(torch.tensor([96.0, 120.0])[:, None, None], torch.tensor([64.0, 128.0])[:, None, None])
    images = [((torch.randint(0, 256, (2, 3, 3)) - done.offset) / done.scale, torch.tensor(0)) for _ in range(20)]
    whole, raw = deployed(model, Splits(images, images, images, 3, preprocessing=done), True)
    graph = checked(whole, (2, 3, 3))
    verify(whole, graph, make_vectors(raw.test, input_format(graph), 200))
    assert float(raw.test[0][0].frac().abs().max()) == 0
    assert torch.equal(whole(torch.stack([x for x, _ in raw.test])), model(torch.stack([x for x, _ in images])))


def test_the_layers_keep_their_names_also_where_the_model_is_one_layer() -> None:
    _, splits = table()
    for model, names in (
        (mlp(nn.ReLU()), ["0", "1", "2"]),
        (nn.Linear(6, 3), [""]),
        (MLP([None, 4, None], (6,), 3), ["layers.0", "layers.1", "layers.2"]),
    ):
        whole, _ = deployed(net(model, (6,)), splits, True)
        graph = checked(whole, (6,))
        assert [step.name for step in graph.steps] == ["raw_inputs", *names]
        verify(whole, graph, make_vectors(splits.test, input_format(graph), 64))
    with pytest.raises(ConfigError, match="adds a layer 'raw_inputs', which the model has already"):
        deployed(whole, splits, True)
