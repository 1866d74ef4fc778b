"""Parameters that several modules use: what is pruned and quantized in one place changes nothing in another."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pquant
from pquant import Horizon, Stage
from pquant.errors import ConfigError
from pquant.pruning import CS, DST, MDMM, PDP, ActivationPruning, AutoSparse, Magnitude, PruningMethod
from pquant.quantization import Quantization

from ..formats import EIGHT_BITS

FIXED = replace(EIGHT_BITS, default_weight_fractional_bits=4)
METHODS = [CS(threshold_init=0.1), AutoSparse(threshold_init=-3.0), PDP(sparsity=0.5, epsilon=1.0), DST(threshold_init=0.1), Magnitude(sparsity=0.5)]


class Tied(nn.Module):
    """Two dense layers that share a weight, a bias, or both."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        for name in names:
            setattr(self.b, name, getattr(self.a, name))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


class Language(nn.Module):
    """A dense layer whose weight is an embedding, too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(10, 8), nn.Linear(8, 10, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embedding(tokens).mean(1))


class Normed(nn.Module):
    """A dense layer whose bias is that of a layer norm, which rounds it to another format."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)
        self.norm.bias = self.a.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.a(x))


def in_training(model: nn.Module, method: PruningMethod | None, quantization: Quantization | None, x: Tensor) -> nn.Module:
    compressed = pquant.compress(model, method, quantization, x)
    pquant.set_stage(compressed, Stage.TRAIN, Horizon(2, 2))
    return compressed


@pytest.mark.parametrize("stage", [Stage.TRAIN, Stage.FINETUNE])
@pytest.mark.parametrize("quantization", [None, FIXED], ids=["float", "fixed"])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_tied_layers_are_finalized_once(method: PruningMethod, quantization: Quantization | None, stage: Stage) -> None:
    x = torch.randn(4, 8)
    for seed in range(3):
        torch.manual_seed(seed)
        model = in_training(Tied("weight", "bias"), method, quantization, x).eval()
        pquant.set_stage(model, stage)
        final = pquant.finalize(model)
        assert torch.equal(final(x), model(x))
        assert pquant.sparsity(final) == pquant.sparsity(model)
        assert final.a.weight is final.b.weight and final.a.bias is final.b.bias


def test_a_shared_bias_may_become_two() -> None:
    x = torch.randn(4, 8)
    own = Quantization(**(vars(FIXED) | {"layer_specific": {"a": {"bias": {"f": 1}}}}))
    model = pquant.compress(Tied("bias"), None, own, x).eval()
    final = pquant.finalize(model)
    assert torch.equal(final(x), model(x)) and final.a.bias is not final.b.bias
    pruned = in_training(Tied("bias"), ActivationPruning(t_delta=1, t_start_collecting_batch=0, threshold=0.5, prune_output_layer=True), None, x)
    pruned(x)
    pquant.on_batch_end(pruned)
    assert torch.equal(pquant.finalize(pruned.eval())(x), pruned(x))


def test_what_is_not_pruned_keeps_its_parameters() -> None:
    x = torch.randn(4, 8)
    model = pquant.compress(Normed(), None, FIXED, x).eval()
    final = pquant.finalize(model)
    assert (
        torch.equal(final(x), model(x))
        and torch.equal(final.norm.bias, model.norm.bias_quantizer(model.norm.bias))
        and model.norm.bias is model.a.bias
    )
    tokens = torch.randint(0, 10, (4, 3))
    words = in_training(Language(), Magnitude(sparsity=0.5), FIXED, tokens).eval()
    before, embedding = words(tokens), words.embedding.weight.clone()
    pquant.set_stage(words, Stage.FINETUNE)
    assert torch.equal(words(tokens), before) and torch.equal(words.embedding.weight, embedding)
    assert torch.equal(pquant.finalize(words)(tokens), before)


@pytest.mark.parametrize("method", [CS(), AutoSparse()], ids=lambda method: type(method).__name__)
def test_a_method_that_rescales_does_not_take_a_weight_that_something_else_uses(method: PruningMethod) -> None:
    tokens = torch.randint(0, 10, (4, 3))
    with pytest.raises(ConfigError, match="layer 'head' has its weight in common with 'embedding'.*disable_pruning_for_layers"):
        pquant.compress(Language(), method, None, tokens)
    spared = type(method)(disable_pruning_for_layers=["head"])
    assert pquant.compress(Language(), spared, None, tokens) is not None


@pytest.mark.parametrize("quantization", [None, FIXED], ids=["float", "fixed"])
@pytest.mark.parametrize("method", [None, Magnitude(sparsity=0.5)], ids=["none", "magnitude"])
def test_a_table_and_a_head_of_one_weight_count_as_once_finalized(method: PruningMethod | None, quantization: Quantization | None) -> None:
    model = in_training(Language(), method, quantization, torch.randint(0, 10, (4, 3))).eval()
    final = pquant.finalize(model)
    assert (final.embedding.weight is final.head.weight) is (method is None)
    metrics = [pquant.model_metrics(one) for one in (model, final)]
    for name in ("params", "nonzero_params", "size_bytes", "weight_bits"):
        assert metrics[0][name] == metrics[1][name]
    assert metrics[0]["params"] == (80 if method is None else 160)


class Mirrored(nn.Module):
    """A convolution and a transposed convolution with one weight, as in an autoencoder."""

    def __init__(self, inner: int, groups: int = 1) -> None:
        super().__init__()
        self.encode = nn.Conv2d(4, inner, 3, padding=1, groups=groups)
        self.decode = nn.ConvTranspose2d(inner, 4, 3, padding=1, groups=groups)
        self.decode.weight = self.encode.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(torch.relu(self.encode(x)))


PER_WEIGHT = Quantization(use_hgq=True, granularity="per_weight")


@pytest.mark.parametrize("inner", [4, 6])
def test_a_weight_that_two_layers_see_transposed_has_one_mask_or_none(inner: int) -> None:
    x = torch.randn(2, 4, 5, 5)
    for method, quantization in [(DST(), None), (Magnitude(), FIXED), (PDP(), PER_WEIGHT), (None, PER_WEIGHT)]:
        with pytest.raises(ConfigError, match="layers 'encode' and 'decode' share a weight, whose first axis"):
            pquant.compress(Mirrored(inner), method, quantization, x)
    spared = pquant.compress(Mirrored(inner), DST(disable_pruning_for_layers=["*code"]), FIXED, x).eval()
    assert torch.equal(spared.encode.weight_quantizer(spared.encode.weight), spared.decode.stored(spared.decode.effective()[0]))
    assert torch.equal(pquant.finalize(spared)(x), spared(x))


def test_a_depthwise_weight_is_seen_alike_by_both_convolutions() -> None:
    x = torch.randn(2, 4, 5, 5)
    model = in_training(Mirrored(4, groups=4), Magnitude(sparsity=0.5), PER_WEIGHT, x)
    assert torch.equal(model.encode.effective()[0], model.decode.stored(model.decode.effective()[0]))
    assert pquant.sparsity(model) >= 0.5


def test_settings_that_differ_for_one_weight_are_refused() -> None:
    x = torch.randn(4, 8)
    for name in ("a", "b"):
        with pytest.raises(ConfigError, match="layers 'a' and 'b' share a weight, and disable_pruning_for_layers names only one"):
            pquant.compress(Tied("weight"), Magnitude(disable_pruning_for_layers=[name]), FIXED, x)
        own = Quantization(**(vars(FIXED) | {"layer_specific": {name: {"weight": {"f": 2}}}}))
        with pytest.raises(ConfigError, match="layers 'a' and 'b' share a weight, and layer_specific gives the weight two formats"):
            pquant.compress(Tied("weight"), None, own, x)
    both = Quantization(**(vars(FIXED) | {"layer_specific": {"*": {"weight": {"f": 2}}}}))
    model = pquant.compress(Tied("weight"), Magnitude(disable_pruning_for_layers=["a", "b"]), both, x)
    assert torch.equal(4 * model.b.effective()[0], (4 * model.b.effective()[0]).round())


def test_each_bias_is_counted_once() -> None:
    assert pquant.model_metrics(pquant.compress(Tied("weight")))["params"] == 64 + 8 + 8
    assert pquant.model_metrics(pquant.compress(Tied("weight", "bias")))["params"] == 64 + 8


@pytest.mark.parametrize(
    "method", [PDP(sparsity=0.5, epsilon=1.0), DST(threshold_init=0.1), MDMM(target_sparsity=0.5)], ids=lambda one: type(one).__name__
)
def test_pruning_after_quantization_decides_by_what_it_prunes(method: PruningMethod) -> None:
    torch.manual_seed(2)
    x = torch.randn(6, 16)
    after: dict[str, Any] = vars(FIXED) | {"pruning_first": False}
    model = in_training(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 8)), method, Quantization(**after), x)
    weights = [layer.weight.detach().clone() for layer in model]
    training = pquant.model_metrics(model)
    pquant.set_stage(model, Stage.FINETUNE)
    tuned = pquant.model_metrics(model)
    assert training["mask_sparsity"] == tuned["mask_sparsity"] and training["sparsity"] == tuned["sparsity"]
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(model, weights, strict=True))
    if isinstance(method, PDP):
        assert tuned["mask_sparsity"] == 0.5


@pytest.mark.parametrize("hgq", [False, True])
def test_a_model_may_write_into_what_a_layer_gave_it(hgq: bool) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.conv(x))
            y += x
            z = self.relu(y) + y
            return F.dropout(z.mul_(2), 0.1, self.training, inplace=True)

    x = torch.randn(2, 3, 8, 8)
    model = pquant.compress(Block(), None, Quantization(**(vars(FIXED) | {"use_hgq": hgq})), x)
    model(x).sum().backward()
    assert all(bool(torch.isfinite(parameter.grad).all()) for parameter in model.parameters() if parameter.grad is not None)
    assert model.conv.weight.grad is not None and bool(model.conv.weight.grad.any())
