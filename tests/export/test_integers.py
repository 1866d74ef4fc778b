import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pquant.errors import ConfigError, ExportError
from pquant.export.check import checked, multiplications
from pquant.export.integers import accumulators, verify, write_integers
from pquant.export.replay import input_format
from pquant.export.vectors import test_vectors as make_vectors
from pquant.models import CNN, MLP, ResNet20
from pquant.quantization.fixed_point import ROUND, SATURATING, WRAPPING

from .nets import Residual, compressed_net, mlp, net, splits


def verified(model: nn.Module, shape: tuple[int, ...], count: int = 1000) -> Any:
    graph = checked(model, shape)
    return verify(model, graph, make_vectors(splits(shape).test, input_format(graph), count))


@settings(max_examples=25)
@given(
    rounding=st.sampled_from(sorted(ROUND)),
    overflow=st.sampled_from(SATURATING + WRAPPING),
    k=st.booleans(),
    bits=st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(1, 5)),
    activation=st.sampled_from(["relu", "tanh"]),
    options=st.fixed_dictionaries({name: st.booleans() for name in ("quantize_output", "use_relu_multiplier", "use_real_tanh")}),
    norm=st.booleans(),
)
def test_random_nets_equal_their_integers(
    rounding: str, overflow: str, k: bool, bits: tuple[int, int, int], activation: Any, options: dict[str, bool], norm: bool
) -> None:
    model = net(
        MLP([None, 5, None], (6,), 3, activation, norm),
        (6,),
        round_mode=rounding,
        overflow_mode_data=overflow,
        default_data_keep_negatives=k,
        default_data_integer_bits=bits[0],
        default_data_fractional_bits=bits[1],
        default_weight_fractional_bits=bits[2],
        **options,
    )
    assert verified(model, (6,)).count == 1000


@pytest.mark.parametrize("granularity", ["per_channel", "per_weight"])
@pytest.mark.parametrize("hgq", [False, True])
@pytest.mark.parametrize("model", [CNN((1, 8, 8), 3, (2, 3)), Residual(), nn.Sequential(nn.Conv1d(2, 3, 3, stride=2, dilation=2), nn.Flatten())])
def test_formats_by_channel_and_value(model: nn.Module, hgq: bool, granularity: str) -> None:
    shape = (2, 9) if isinstance(model, nn.Sequential) else (1, 4, 4) if isinstance(model, Residual) else (1, 8, 8)
    final = net(model, shape, use_hgq=hgq, granularity=granularity, data_granularity=granularity)
    assert verified(final, shape, 200).count == 200


def test_a_mean_of_nine() -> None:
    model = nn.Sequential(nn.AvgPool2d(3, padding=1), nn.Flatten(), nn.Linear(4, 2))
    assert verified(net(model, (1, 4, 4)), (1, 4, 4)).outputs.shape == (1000, 2)


def test_a_resnet() -> None:
    assert verified(net(ResNet20((1, 4, 4), 3, blocks=1), (1, 4, 4)), (1, 4, 4), 64).outputs.shape == (64, 3)


@pytest.mark.parametrize("layer", [0, 2])
def test_a_tampered_weight_is_caught_and_named(layer: int) -> None:
    model = net(mlp(nn.ReLU()), (6,))
    graph = checked(model, (6,))
    vectors = make_vectors(splits((6,)).test, input_format(graph), 100)
    other = net(mlp(nn.ReLU()), (6,))
    place = other[layer].weight.abs().argmax()  # type: ignore[index, union-attr]
    other[layer].weight.flatten()[place] -= 2**-4 * other[layer].weight.flatten()[place].sign()  # type: ignore[index, union-attr]
    with pytest.raises(ExportError, match=rf"differ at '{layer}'\[\d\], vector \d+: the model gives -?[\d.]+, the integers -?[\d.]+"):
        verify(other, graph, vectors)


def test_wide_accumulators_are_warned_of_and_checked_in_float64(caplog: pytest.LogCaptureFixture) -> None:
    wide = net(mlp(nn.ReLU()), (6,), default_weight_fractional_bits=12, default_data_fractional_bits=14)
    rows = verified(wide, (6,)).accumulators
    assert not rows[0].float32_exact and rows[0].partial_bits > 25 and "more than float32 has" in caplog.text
    caplog.clear()
    assert all(row.float32_exact for row in verified(net(mlp(nn.ReLU()), (6,)), (6,)).accumulators) and not caplog.text


def test_accumulators_hold_what_is_reached() -> None:
    model = net(nn.Linear(6, 1, bias=False), (6,))
    row = accumulators(checked(model, (6,)))[0]
    highest = int((model.weight.abs() * 16).sum()) * 32  # type: ignore[operator, union-attr]
    assert row.layer == "" and row.partial_bits == highest.bit_length() + 1


def test_the_files_are_enough_to_compute_the_outputs(tmp_path: Path) -> None:
    model = net(mlp(nn.ReLU()), (6,))
    write_integers(checked(model, (6,)), verified(model, (6,), 100), tmp_path)
    arrays, said = np.load(tmp_path / "integers.npz"), json.loads((tmp_path / "integers.json").read_text())
    first, relu, last = said["layers"]
    x, f = arrays["vectors.inputs"], said["vectors"]["inputs"]["f"]
    y = x @ arrays["0.weight"].T * 2.0 ** -(f + first["weight"]["f"]) + arrays["0.bias"] * 2.0 ** -first["bias"]["f"]
    bits = relu["input"]
    y = np.clip(np.floor(y * 2 ** bits["f"] + 0.5), 0, 2 ** (bits["i"] + bits["f"]) - 1) * 2.0 ** -bits["f"]
    y = y @ arrays["2.weight"].T * 2.0 ** -last["weight"]["f"] + arrays["2.bias"] * 2.0 ** -last["bias"]["f"]
    np.testing.assert_array_equal(y, arrays["vectors.outputs"] * 2.0 ** -said["vectors"]["outputs"]["f"])
    assert [row["layer"] for row in said["accumulators"]] == ["0", "1", "2"]
    assert [(row["kind"], row["inputs"]) for row in said["steps"]] == [("layer", [0]), ("layer", [1]), ("layer", [2])] and said["output"] == 3


def test_the_files_say_what_takes_which_values(tmp_path: Path) -> None:
    model = net(Residual(), (1, 4, 4))
    write_integers(checked(model, (1, 4, 4)), verified(model, (1, 4, 4), 64), tmp_path)
    arrays, said = np.load(tmp_path / "integers.npz"), json.loads((tmp_path / "integers.json").read_text())
    kinds = [row["kind"] for row in said["steps"]]
    assert {"layer", "sum", "move"} <= set(kinds) and "kernel_size=(3, 3)" in next(
        row["settings"] for row in said["layers"] if row["name"] == "first"
    )
    turned = next(row for row in said["steps"] if row["name"].startswith("transpose"))
    assert np.array_equal(arrays[turned["index"]], np.arange(16).reshape(4, 2, 2).swapaxes(0, 1))


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        (mlp(nn.ReLU()), {"quantize_input": False}, "layer '0' takes values that are not quantized"),
        (mlp(nn.ReLU()), {"layer_specific": {"0": {"weight": {"enable": False}}}}, "layer '0' has a weight that stays float"),
        (mlp(nn.ReLU()), {"layer_specific": {"2": {"bias": {"enable": False}}}}, "layer '2' has a bias that stays float"),
        (nn.Sequential(nn.Linear(6, 5), nn.Tanh()), {"use_real_tanh": True}, "the outputs of the model are not quantized"),
        (mlp(nn.BatchNorm1d(5)), {"layer_specific": {"1": {"weight": {"enable": False}}}}, "layer '1' has a weight that stays float"),
        (nn.Sequential(nn.Linear(6, 5), nn.LPPool1d(2, 2)), {}, "in '1' cannot be exported to hardware"),
    ],
)
def test_what_cannot_become_hardware_is_said_before_training(model: nn.Module, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        checked(compressed_net(model, (6,), **options), (6,))


def test_modes_that_a_target_does_not_have() -> None:
    model = compressed_net(mlp(nn.ReLU()), (6,), overflow_mode_data="WRAP_SM")
    with pytest.raises(ConfigError, match="layer '0' has overflow_mode WRAP_SM"):
        checked(model, (6,), {"RND", "SAT"})


def test_multiplications() -> None:
    assert multiplications(checked(compressed_net(Residual(), (1, 4, 4)), (1, 4, 4))) == 16 * (4 * 9 + 4 * 18) + 16 * 3


def test_an_input_in_two_formats_has_one_that_holds_both_or_is_refused() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 2), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x) + self.b(x)

    one = net(Two(), (6,))
    assert input_format(checked(one, (6,))).f.tolist() == [3] * 6
    b = {"b": {"input": {"f": 2, "i": 4}}}
    two = net(Two(), (6,), layer_specific=b, round_mode="RND_CONV")
    with pytest.raises(ConfigError, match="'b' quantizes the model's input in another format than 'a'"):
        input_format(checked(two, (6,)))
    with pytest.raises(ConfigError, match="layers a, b quantize the model's input with trained bits, which may come to differ"):
        checked(compressed_net(Two(), (6,), use_hgq=True, round_mode="RND_CONV"), (6,))
    for rounding, f in (("RND", 4), ("TRN", 3)):
        for overflow in ("SAT", "WRAP", "SAT_SYM"):
            both = net(Two(), (6,), layer_specific=b, round_mode=rounding, overflow_mode_data=overflow)
            form = input_format(checked(both, (6,)))
            assert (form.f.tolist(), form.i.tolist(), form.round_mode) == ([f] * 6, [4] * 6, "TRN")
            assert verified(both, (6,)).count == 1000


def test_vectors_have_the_edges_the_data_and_the_beyond() -> None:
    data = splits((6,)).test
    form = input_format(checked(net(mlp(nn.ReLU()), (6,)), (6,)))
    vectors = make_vectors(data, form, 100)
    assert vectors.shape == (100, 6) and vectors.dtype == np.float32
    for edge in (-4.0, 3.875, 0.0):
        assert (vectors == edge).all(1).any()
    assert vectors.min() < -4 and vectors.max() > 3.875
    assert all((vectors == data[at][0].numpy()).all(1).any() for at in range(20))
