"""Products of data, softmax and attention with trained bits against HGQ2, the authors' own package, on equal bit widths."""

import os
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pquant
from pquant.layers import Merge, ScaledDotProductAttention, ScaledSoftmax
from pquant.quantization import Quantization
from pquant.quantization.hgq import HGQQuantizer

os.environ.setdefault("KERAS_BACKEND", "torch")
layers = pytest.importorskip("hgq.layers")
config = pytest.importorskip("hgq.config")

TABLES = {"exponential": {"round_mode": "RND_CONV"}, "reciprocal": {"round_mode": "RND_CONV"}}
SECTION = Quantization(
    default_data_keep_negatives=True,
    default_data_integer_bits=2,
    default_data_fractional_bits=4,
    quantize_output=False,
    use_hgq=True,
    hgq_beta=1.0,
    data_granularity="per_weight",
)


def datalane() -> Any:
    return config.QuantizerConfig("kif", "datalane", k0=1, overflow_mode="SAT", round_mode="RND", heterogeneous_axis=None, homogeneous_axis=(0,))


def table() -> Any:
    return config.QuantizerConfig("kif", "table", k0=0, overflow_mode="SAT", round_mode="RND_CONV")


def wide() -> Any:
    """Return a quantizer that changes nothing here."""
    return config.QuantizerConfig("kif", "datalane", k0=1, i0=9, f0=13, overflow_mode="SAT", round_mode="RND")


def spread(model: nn.Module) -> None:
    """Let the trained bits of all quantizers differ."""
    for quantizer in model.modules():
        if isinstance(quantizer, HGQQuantizer):
            quantizer.i.data.add_(torch.rand(quantizer.i.shape) - 0.5)
            quantizer.f.data.add_(2 * torch.rand(quantizer.f.shape) - 1)


def copied(ours: Any, theirs: Any) -> None:
    """Give their quantizer the bits of ours."""
    for name in ("i", "f"):
        getattr(theirs.quantizer, f"_{name}").assign(
            np.broadcast_to(getattr(ours, name).detach().numpy(), getattr(theirs.quantizer, f"_{name}").shape)
        )


def equal_gradients(ours: Any, theirs: Any) -> None:
    for name in ("i", "f"):
        grad = getattr(theirs.quantizer, f"_{name}").value.grad
        mine = getattr(ours, name).grad
        torch.testing.assert_close(mine.flatten(), (grad if mine.numel() == grad.numel() else grad.sum()).flatten(), rtol=1e-4, atol=1e-5)


MERGES: dict[str, tuple[Any, Any]] = {
    "add": (Merge("add"), layers.QAdd),
    "sub": (Merge("sub"), layers.QSubtract),
    "mul": (Merge("mul"), layers.QMultiply),
    "maximum": (Merge("maximum"), layers.QMaximum),
    "minimum": (Merge("minimum"), layers.QMinimum),
    "einsum": (Merge("einsum", "bij,bkj->bik"), lambda **settings: layers.QEinsum("bij,bkj->bik", **settings)),
}


@pytest.mark.parametrize("kind", MERGES)
def test_merges(kind: str) -> None:
    torch.manual_seed(0)
    layer, make = MERGES[kind]
    a, b = (2 * torch.randn(8, 3, 4) for _ in "ab")
    mine = pquant.compress(layer, None, SECTION, (a, b))
    pquant.set_stage(mine, pquant.Stage.TRAIN)
    spread(mine)
    theirs = make(iq_confs=datalane(), enable_ebops=True, beta0=1.0)
    theirs.build([(None, 3, 4)] * 2)
    pairs = list(zip((mine.input_quantizer, mine.other_quantizer), theirs.iq, strict=True))
    for ours, other in pairs:
        copied(ours, other)
    inputs = [x.clone().requires_grad_() for x in (a, b, a, b)]
    y, z = mine(*inputs[:2]), theirs(inputs[2:], training=True)
    torch.testing.assert_close(y, z)
    if kind in ("mul", "einsum"):  # HGQ2 counts sums and comparisons too; EBOPs as the paper has them are products
        assert pquant.penalty(mine).item() == pytest.approx(float(theirs.ebops), abs=0.51)
        assert pquant.ebops(mine) == pytest.approx(float(theirs.ebops), abs=0.51)
    g = torch.randn_like(y)
    (y * g).sum().backward()
    (z * g).sum().backward()
    for ours, other in pairs:
        equal_gradients(ours, other)
    for first, second in zip(inputs[:2], inputs[2:], strict=True):
        torch.testing.assert_close(first.grad, second.grad)


def softmax_of(mine: Any, scale: float) -> Any:
    """Return HGQ2's softmax with the bits of ours; the constant scale is applied outside."""
    theirs = layers.QSoftmax(
        axis=-1,
        iq_conf=datalane(),
        enable_iq=True,
        enable_ebops=True,
        exp_iq_conf=wide(),
        inv_iq_conf=wide(),
        exp_oq_conf=table(),
        inv_oq_conf=table(),
    )
    theirs.build((None, *mine.calls[0].input[1:]))
    for ours, other in softmax_pairs(mine, theirs):
        copied(ours, other)
    return theirs


def softmax_pairs(mine: Any, theirs: Any) -> list[tuple[Any, Any]]:
    return [(mine.input_quantizer, theirs.iq), (mine.exponential_quantizer, theirs.exp_table.oq), (mine.reciprocal_quantizer, theirs.inv_table.oq)]


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_softmax(scale: float) -> None:
    torch.manual_seed(0)
    a = 2 * torch.randn(8, 3, 5)
    section = Quantization(**(vars(SECTION) | {"layer_specific": {"*": TABLES | {"input": {"granularity": "per_tensor"}}}}))
    mine = pquant.compress(ScaledSoftmax(-1, scale), None, section, a)
    pquant.set_stage(mine, pquant.Stage.TRAIN)
    spread(mine)
    theirs = softmax_of(mine, scale)
    x, w = a.clone().requires_grad_(), a.clone().requires_grad_()
    y, z = mine(x), theirs(w * scale, training=True)
    torch.testing.assert_close(y, z)
    products = float(theirs._compute_ebops((1, 3, 5))) - _sums(theirs)
    assert pquant.penalty(mine).item() == pytest.approx(products, rel=1e-5)
    g = torch.randn_like(y)
    (y * g).sum().backward()
    (z * g).sum().backward()
    for ours, other in softmax_pairs(mine, theirs):
        equal_gradients(ours, other)
    torch.testing.assert_close(x.grad, w.grad, rtol=1e-4, atol=1e-6)


def _sums(theirs: Any) -> float:
    """Return what HGQ2 counts beside products: the differences to the largest value, and the sum of exponentials."""
    differences = theirs.iq.bits_((1, 3, 5)).sum()
    exponentials = theirs.exp_table.oq.bits_((1, 3, 5))
    return float(differences + exponentials.sum() - exponentials.amin(-1).sum())


def test_attention_is_their_products_and_softmax_in_this_order() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(4, 2, 3, 4) for _ in "qkv")
    section = Quantization(**(vars(SECTION) | {"layer_specific": {"softmax": TABLES}}))
    mine: Any = pquant.compress(ScaledDotProductAttention(0.5), None, section, (q, k, v))
    pquant.set_stage(mine, pquant.Stage.TRAIN)
    spread(mine)
    scores = layers.QEinsum("bhij,bhkj->bhik", iq_confs=datalane(), enable_ebops=True, beta0=1.0)
    context = layers.QEinsum("bhij,bhjk->bhik", iq_confs=datalane(), enable_ebops=True, beta0=1.0)
    scores.build([(None, 2, 3, 4)] * 2)
    context.build([(None, 2, 3, 3), (None, 2, 3, 4)])
    softmax = softmax_of(mine.softmax, 0.5)
    for ours, theirs in ((mine.scores, scores), (mine.context, context)):
        copied(ours.input_quantizer, theirs.iq[0])
    copied(Transposed(mine.scores.other_quantizer), scores.iq[1])
    copied(mine.context.other_quantizer, context.iq[1])

    def their_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        weights = softmax(scores([query, key], training=True) * 0.5, training=True)
        return context([weights, value], training=True)

    inputs = [x.clone().requires_grad_() for x in (q, k, v, q, k, v)]
    y, z = mine(*inputs[:3]), their_attention(*inputs[3:])
    torch.testing.assert_close(y, z)
    products = sum(float(part.ebops) for part in (scores, context))
    mine_products = sum(float(part.trained_ebops(lambda quantizer: quantizer.bits())) for part in (mine.scores, mine.context))
    assert mine_products == pytest.approx(products, rel=1e-5, abs=1.1)
    g = torch.randn_like(y)
    (y * g).sum().backward()
    (z * g).sum().backward()
    for first, second in zip(inputs[:3], inputs[3:], strict=True):
        torch.testing.assert_close(first.grad, second.grad, rtol=1e-4, atol=1e-5)


class Transposed:
    """The bits of a quantizer of keys (batch, heads, features, sources), as theirs has them before the transposition."""

    def __init__(self, quantizer: Any) -> None:
        self.i, self.f = quantizer.i.transpose(-2, -1), quantizer.f.transpose(-2, -1)
