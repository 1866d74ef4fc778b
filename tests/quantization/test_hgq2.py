"""Trained bits and EBOPs against HGQ2, the authors' own package, on equal bit widths."""

import os
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pquant
from pquant.quantization import Quantization
from pquant.quantization.hgq import HGQQuantizer

os.environ.setdefault("KERAS_BACKEND", "torch")
layers = pytest.importorskip("hgq.layers")
config = pytest.importorskip("hgq.config")

BITS = {"default_data_keep_negatives": True, "default_weight_keep_negatives": True, "quantize_output": False, "use_hgq": True, "hgq_beta": 1.0}
# Convolutions without bias: HGQ2 0.2 counts theirs once for each input position, not output position.
CASES: dict[str, tuple[nn.Module, tuple[int, ...], Any]] = {
    "dense": (nn.Linear(5, 4), (5,), partial(layers.QDense, 4)),
    "dense on a sequence": (nn.Linear(5, 4), (6, 5), partial(layers.QDense, 4)),
    "conv1d": (nn.Conv1d(3, 4, 3, stride=2, bias=False), (3, 9), partial(layers.QConv1D, 4, 3, strides=2, use_bias=False)),
    "conv2d": (nn.Conv2d(3, 4, (3, 2), bias=False), (3, 5, 6), partial(layers.QConv2D, 4, (3, 2), use_bias=False)),
}


def as_weight(values: Tensor) -> np.ndarray:
    """Return a weight (out, in, *kernel), or a bias, as Keras has it: (*kernel, in, out)."""
    return values.detach().permute(*range(2, values.ndim), *reversed(range(min(values.ndim, 2)))).numpy()


def as_data(values: Tensor, dense: bool) -> np.ndarray:
    """Return the bits of one input as Keras has them: channels last, with a batch axis."""
    return (values if dense else values.movedim(0, -1)).detach().numpy()[None]


def quantizer_config(place: str) -> Any:
    heterogeneous = {"heterogeneous_axis": None, "homogeneous_axis": (0,) if place == "datalane" else ()}
    return config.QuantizerConfig("kif", place, k0=1, overflow_mode="SAT", round_mode="RND", **heterogeneous)


COUNTS = {name: case for name, case in CASES.items() if name != "dense"}


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize(("factor", "built"), [(1.0, 1), (0.5, 2), (3.0, -1)])
def test_ebops_weighed_and_of_the_positions_that_are_built(name: str, factor: float, built: int) -> None:
    layer, shape, make = COUNTS[name]
    torch.manual_seed(0)
    x = 2 * torch.randn(8, *shape)
    rule = {"": {"ebops_factor": factor, "parallelization": built}}
    mine = pquant.compress(layer, None, Quantization(**BITS, granularity="per_weight", data_granularity="per_weight", layer_specific=rule), x)
    pquant.set_stage(mine, pquant.Stage.TRAIN)
    for quantizer in (module for module in mine.children() if isinstance(module, HGQQuantizer)):
        quantizer.i.data.uniform_(-0.9, 2)
        quantizer.f.data.uniform_(1.6, 5)
    quantizers = {"kq_conf": quantizer_config("weight"), "iq_conf": quantizer_config("datalane"), "bq_conf": quantizer_config("bias")}
    theirs = make(**quantizers, beta0=1.0, enable_ebops=True, ebops_factor=factor, parallelization_factor=built)
    dense = isinstance(layer, nn.Linear)
    last = x if dense else x.movedim(1, -1)
    theirs.build((None, *last.shape[1:]))
    pairs = [(mine.weight_quantizer, theirs.kq, as_weight), (mine.input_quantizer, theirs.iq, partial(as_data, dense=dense))]
    pairs += [] if mine.bias is None else [(mine.bias_quantizer, theirs.bq, as_weight)]
    for ours, other, arrange in pairs:
        other.quantizer._i.assign(arrange(ours.i))
        other.quantizer._f.assign(arrange(ours.f))
    theirs(last, training=True)
    assert pquant.penalty(mine).item() == pytest.approx(float(theirs._compute_ebops((1, *last.shape[1:]))) * factor)
    assert float(theirs.ebops) == pytest.approx(pquant.penalty(mine).item(), abs=1)


@pytest.mark.parametrize("name", CASES)
def test_values_gradients_and_ebops(name: str) -> None:
    layer, shape, make = CASES[name]
    torch.manual_seed(0)
    x = 2 * torch.randn(8, *shape)
    section = Quantization(**BITS, granularity="per_weight", data_granularity="per_weight")
    mine = pquant.compress(layer, None, section, x)
    pquant.set_stage(mine, pquant.Stage.TRAIN)
    for quantizer in (module for module in mine.children() if isinstance(module, HGQQuantizer)):
        quantizer.i.data.uniform_(-0.9, 2)
        quantizer.f.data.uniform_(1.6, 5)

    quantizers = {"kq_conf": quantizer_config("weight"), "iq_conf": quantizer_config("datalane"), "bq_conf": quantizer_config("bias")}
    theirs = make(**quantizers, beta0=1.0, enable_ebops=True)
    dense = isinstance(layer, nn.Linear)
    last = x if dense else x.movedim(1, -1)
    theirs.build((None, *last.shape[1:]))
    theirs.kernel.assign(as_weight(mine.weight))
    pairs = [(mine.weight_quantizer, theirs.kq, as_weight), (mine.input_quantizer, theirs.iq, partial(as_data, dense=dense))]
    if mine.bias is not None:
        theirs.bias.assign(as_weight(mine.bias))
        pairs.append((mine.bias_quantizer, theirs.bq, as_weight))
    for ours, other, arrange in pairs:
        other.quantizer._i.assign(arrange(ours.i))
        other.quantizer._f.assign(arrange(ours.f))

    y, z = mine(x), theirs(last, training=True)
    z = z if dense else z.movedim(-1, 1)
    torch.testing.assert_close(y, z.detach())
    assert pquant.penalty(mine).item() == pytest.approx(float(theirs.ebops))

    g = torch.randn_like(y)
    (y * g).sum().backward()
    (z * g).sum().backward()
    torch.testing.assert_close(torch.from_numpy(as_weight(mine.weight.grad).copy()), theirs.kernel.value.grad)
    for ours, other, arrange in pairs:
        torch.testing.assert_close(torch.from_numpy(arrange(ours.f.grad).copy()), other.quantizer._f.value.grad)
        torch.testing.assert_close(torch.from_numpy(arrange(ours.i.grad).copy()), other.quantizer._i.value.grad)
