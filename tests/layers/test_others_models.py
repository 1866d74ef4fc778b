"""What other people's models do: write in place, read weights of layers, leave layers uncalled, put the batch second, use doubles."""

import copy
import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import pquant
from pquant.errors import ConfigError
from pquant.layers import PQActivation, PQAvgPool2d, PQBatchNorm2d, PQConv2d, PQDense, QuantizedLayer
from pquant.pruning import CS, DST, MDMM, PDP, ActivationPruning, AutoSparse, Magnitude, PruningMethod, Wanda
from pquant.quantization import Quantization, fixed_point


def bits(data: int, weight: int, **others: Any) -> Quantization:
    """Return a section with a sign, 2 integer bits for data, none for weights, and these fractional bits."""
    return Quantization(
        default_data_keep_negatives=True,
        default_data_integer_bits=2,
        default_data_fractional_bits=data,
        default_weight_keep_negatives=True,
        default_weight_fractional_bits=weight,
        **others,
    )


FIXED = bits(5, 7)
TRAINED = bits(5, 7, use_hgq=True, hgq_beta=1e-5, hgq_gamma=1e-5, quantize_output=False)


def steps(model: nn.Module, x: Tensor, count: int = 3) -> None:
    """Train in the train stage, and enter fine-tuning."""
    pquant.set_stage(model.train(), pquant.Stage.TRAIN, pquant.Horizon(1, count))
    optimizer = torch.optim.SGD(pquant.parameter_groups(model), 0.05)
    for _ in range(count):
        optimizer.zero_grad()
        (model(x.clone()).square().mean() + pquant.penalty(model)).backward()
        optimizer.step()
        pquant.on_batch_end(model)
    pquant.on_epoch_end(model)
    pquant.set_stage(model, pquant.Stage.FINETUNE)


class Before(nn.Module):
    """Rectifies its input in place, and uses it again."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.c, self.r = layer, nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.r(x)) + x


class After(Before):
    """Rectifies what its layer gives in place, and uses it again."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.c(x)
        return self.r(h) + h


IN_PLACE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dense, before": (lambda: Before(nn.Linear(6, 6)), (4, 6)),
    "dense, after": (lambda: After(nn.Linear(6, 3)), (4, 6)),
    "conv, before": (lambda: Before(nn.Conv2d(2, 2, 3, padding=1)), (2, 2, 5, 5)),
    "conv, after": (lambda: After(nn.Conv2d(2, 3, 3)), (2, 2, 5, 5)),
}
in_place = pytest.mark.parametrize("kind", IN_PLACE)
with_and_without = pytest.mark.parametrize("example", [True, False])


def in_place_model(kind: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape = IN_PLACE[kind]
    return make(), torch.randn(shape)


def differentiated(model: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    leaf = x.clone().requires_grad_()
    y = model(leaf * 1)
    y.square().sum().backward()
    return y.detach(), [leaf.grad, *(parameter.grad for parameter in model.parameters())]


@with_and_without
@in_place
def test_a_relu_in_place_writes_where_the_float_model_did(kind: str, example: bool) -> None:
    model, x = in_place_model(kind)
    compressed = pquant.compress(model, None, None, x.clone() if example else None)
    for training in (True, False):
        model.train(training).zero_grad()
        compressed.train(training).zero_grad()
        (y, grads), (expected, others) = differentiated(compressed, x), differentiated(model, x)
        assert torch.equal(y, expected) and all(torch.equal(mine, theirs) for mine, theirs in zip(grads, others, strict=True))
    assert torch.equal(pquant.finalize(compressed)(x.clone()), model(x.clone()))


@with_and_without
@in_place
@pytest.mark.parametrize("section", [FIXED, bits(5, 7, use_relu_multiplier=False), bits(5, 7, quantize_output=False, use_hgq=True)])
def test_finalizing_a_model_that_rectifies_in_place_moves_no_bit(kind: str, example: bool, section: Quantization) -> None:
    model, x = in_place_model(kind)
    compressed = pquant.compress(model, None, section, x.clone() if example else None)
    steps(compressed, x)
    assert torch.equal(pquant.finalize(compressed)(x.clone()), compressed.eval()(x.clone()))


@with_and_without
@in_place
@pytest.mark.parametrize("multiplier", [True, False])
def test_with_fine_bits_a_model_that_rectifies_in_place_is_close_to_the_float_one(kind: str, example: bool, multiplier: bool) -> None:
    model, x = in_place_model(kind)
    fine = replace(bits(14, 14, default_weight_integer_bits=2, use_relu_multiplier=multiplier), default_data_integer_bits=4)
    compressed = pquant.compress(model, None, fine, x.clone() if example else None)
    torch.testing.assert_close(compressed(x.clone()), model(x.clone()), rtol=0, atol=2e-3)


@in_place
def test_the_example_is_not_written_to(kind: str) -> None:
    model, x = in_place_model(kind)
    example = x.clone()
    compressed = pquant.compress(model, None, FIXED, example)
    pquant.unconverted(compressed, example)
    assert torch.equal(example, x)


class CalledAndRead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.last = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.a(x) + F.linear(x, self.a.weight))


class OnlyRead(CalledAndRead):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.linear(x, self.a.weight, self.a.bias))


class TiedAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc, self.act = nn.Linear(6, 4), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.act(self.enc(x)), self.enc.weight.t())


class Attention(nn.Module):
    """Attention as torchvision's Swin block has it: ``qkv`` and ``proj`` are never called, their parameters go to functions."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(6, 18), nn.Linear(6, 6)
        self.mlp = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, self.qkv.weight, self.qkv.bias).chunk(3, -1)
        h = F.linear((q @ k.transpose(-2, -1)).softmax(-1) @ v, self.proj.weight, self.proj.bias)
        return x + self.mlp(x + h)


READERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[str]]] = {
    "called and read": (CalledAndRead, (8, 6), ["a"]),
    "only read": (OnlyRead, (8, 6), ["a"]),
    "tied autoencoder": (TiedAutoencoder, (8, 6), ["enc"]),
    "attention": (Attention, (4, 5, 6), ["qkv", "proj"]),
}


def reader(kind: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape, _ = READERS[kind]
    x = torch.randn(shape)
    return pquant.compress(make(), Magnitude(sparsity=0.5), bits(1, 3), x), x


@pytest.mark.parametrize("kind", READERS)
def test_finalizing_moves_no_bit_where_something_else_reads_a_weight(kind: str) -> None:
    model, x = reader(kind)
    steps(model, x)
    test = torch.randn(x.shape) * 2
    assert torch.equal(pquant.finalize(model)(test), model.eval()(test))


@pytest.mark.parametrize("kind", READERS)
def test_a_layer_whose_weight_is_read_is_quantized_there_too_or_said_to_stay_float(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    model, x = reader(kind)
    steps(model, x)
    table, used = {row["name"] for row in pquant.layer_table(model)}, list[Tensor]()

    class Seen(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is F.linear:
                used.extend((args[1].detach(), args[1].detach().t()))
            return func(*args, **(kwargs or {}))

    with Seen():
        model.eval()(x)
    for name in READERS[kind][2]:
        layer = model.get_submodule(name)
        (raw,) = (parameter for parameter in layer.parameters() if parameter.ndim == 2)
        if isinstance(layer, QuantizedLayer):
            assert not any(weight.shape == raw.shape and torch.equal(weight, raw) for weight in used), "the float weight is multiplied with nowhere"
        else:
            assert type(layer) is nn.Linear and name not in table
            assert any(re.search(rf"[( ]{name}[,)]", line) for line in pquant.unconverted(model))
            assert any(re.search(rf"[( ]{name}[,)]", message) for message in caplog.messages)


class Heads(nn.Module):
    """One head that is used, one that never is, and one that training alone uses."""

    def __init__(self, others: bool = True) -> None:
        super().__init__()
        self.fc, self.act, self.head = nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)
        if others:
            self.unused, self.spare, self.auxiliary = nn.Linear(6, 4), nn.Conv1d(2, 3, 2), nn.Sequential(nn.Linear(6, 3), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.fc(x))
        return self.head(h) + (self.auxiliary(h) if self.training else 0)


GRAINED = [bits(4, 5, data_granularity=grain, granularity=grain) for grain in ("per_tensor", "per_channel", "per_weight")] + [
    bits(4, 5, data_granularity=grain, use_hgq=True, hgq_beta=1.0) for grain in ("per_tensor", "per_channel", "per_weight")
]
grained = pytest.mark.parametrize("section", GRAINED, ids=lambda s: f"{'trained' if s.use_hgq else 'fixed'} {s.data_granularity}")


def heads(others: bool = True) -> Heads:
    torch.manual_seed(0)
    return Heads(others)


@grained
def test_layers_that_the_example_does_not_call_cost_nothing(section: Quantization, caplog: pytest.LogCaptureFixture) -> None:
    x = torch.randn(8, 5)
    model, twin = (pquant.compress(heads(others), None, section, x) for others in (True, False))
    for one in (model, twin):
        pquant.set_stage(one, pquant.Stage.TRAIN)
    assert pquant.ebops(model) == pquant.ebops(twin) > 0
    assert float(pquant.penalty(model)) == float(pquant.penalty(twin))
    assert torch.equal(model.eval()(x), twin.eval()(x))
    for name in ("unused", "spare", "auxiliary.0"):
        assert any(name in message for message in caplog.messages), name
    assert not any(name in message for message in caplog.messages for name in ("(fc", "(head"))


@grained
@pytest.mark.parametrize("method", [Wanda(sparsity=0.5, t_start_collecting_batch=1, t_delta=2), DST(threshold_init=0.1)])
def test_training_goes_through_with_layers_that_the_example_does_not_call(section: Quantization, method: PruningMethod) -> None:
    x, weak = torch.randn(8, 5), section.hgq_beta and 1e-5
    model = pquant.compress(heads(), method, replace(section, hgq_beta=weak, hgq_gamma=weak), x)
    before = model.auxiliary[0].weight.detach().clone()
    steps(model, x, 5)
    assert not torch.equal(model.auxiliary[0].weight, before), "training still trains what it alone uses"
    assert 0 < pquant.sparsity(model) < 1 and math.isfinite(pquant.ebops(model))
    assert torch.equal(pquant.finalize(model)(x), model.eval()(x))


class Positions(nn.Module):
    """One dense layer for all positions of (batch, positions, features), by itself or on rows."""

    def __init__(self, on_rows: bool) -> None:
        super().__init__()
        self.phi, self.on_rows = nn.Linear(3, 5), on_rows

    def forward(self, x: Tensor) -> Tensor:
        return self.phi(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], 5) if self.on_rows else self.phi(x)


def positions(on_rows: bool, batch: int, section: Quantization) -> nn.Module:
    torch.manual_seed(0)
    return pquant.compress(Positions(on_rows), None, section, torch.randn(batch, 8, 3))


def test_ebops_are_those_of_one_example_however_it_is_laid_out() -> None:
    counts = [pquant.ebops(positions(on_rows, batch, FIXED)) for on_rows in (False, True) for batch in (1, 2, 6)]
    assert counts == counts[:1] * 6 and counts[0] > 0 and counts[0] % 8 == 0


def test_the_regularization_of_trained_bits_is_that_of_one_example_however_it_is_laid_out() -> None:
    section = bits(3, 5, use_hgq=True, hgq_beta=1.0, quantize_output=False)
    for on_rows in (False, True):
        for batch in (1, 2, 6):
            model = positions(on_rows, batch, section)
            pquant.set_stage(model, pquant.Stage.TRAIN)
            assert float(pquant.penalty(model)) == 8 * (5 * 3 * 6 * 6 + 5 * 6), (on_rows, batch)


@pytest.mark.parametrize("batches", [1, 3])
def test_ebops_of_convolutions_on_folded_frames_count_every_frame(batches: int) -> None:
    class Frames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(2, 3, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x.flatten(0, 1)).view(*x.shape[:2], 3, -1)

    section = bits(3, 5, use_hgq=True, hgq_beta=1.0, quantize_output=False)
    model = pquant.compress(Frames(), None, section, torch.randn(batches, 4, 2, 7))
    pquant.set_stage(model, pquant.Stage.TRAIN)
    assert float(pquant.penalty(model)) == 4 * 5 * (3 * 2 * 3) * 6 * 6


class BatchSecond(nn.Module):
    """Takes (batch, sequence, features), and turns it for an encoder that has the batch second."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x.transpose(0, 1)).transpose(0, 1)


def encoder(batch_first: bool) -> nn.TransformerEncoderLayer:
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=batch_first)


@pytest.mark.parametrize("section", [FIXED, bits(3, 5, use_hgq=True, hgq_beta=1.0, quantize_output=False)], ids=["fixed", "trained"])
@pytest.mark.parametrize("turned", [False, True])
def test_ebops_of_a_transformer_do_not_depend_on_the_batch_nor_on_its_axis(turned: bool, section: Quantization) -> None:
    found = []
    for batch_first, batch in [(True, 2), (True, 8), (False, 2), (False, 8)]:
        sequence_first = not batch_first and not turned
        model: nn.Module = BatchSecond(encoder(False)) if turned and not batch_first else encoder(batch_first)
        x = torch.randn(*((5, batch) if sequence_first else (batch, 5)), 4)
        compressed = pquant.compress(model, None, section, x)
        pquant.set_stage(compressed, pquant.Stage.TRAIN)
        found.append((pquant.ebops(compressed), float(pquant.penalty(compressed))))
    assert found == found[:1] * 4 and found[0][0] > 0


def by_features(section: Quantization) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    return pquant.compress(net, None, section, torch.randn(4, 8, 3))


PER_CHANNEL = {"data_granularity": "per_channel", "use_hgq": True}


@pytest.mark.parametrize("multiplier", [True, False])
@pytest.mark.parametrize("outputs", [True, False])
def test_bits_by_channel_of_particles_are_bits_by_feature(multiplier: bool, outputs: bool) -> None:
    model = by_features(bits(4, 5, **PER_CHANNEL, use_relu_multiplier=multiplier, quantize_output=outputs, hgq_beta=1e-3))
    widths = {name: value.numel() for name, value in model.named_parameters() if name.endswith(("put_quantizer.i", "put_quantizer.f"))}
    assert widths["0.input_quantizer.f"] == widths["0.input_quantizer.i"] == 3
    for name, count in widths.items():
        assert count == {"0.input": 3, "0.output": 5, "1.input": 5, "1.output": 5, "2.input": 5, "2.output": 2}[name.split("_")[0]], name
    assert any(name.startswith("1.") for name in widths)


def test_bits_by_feature_serve_any_number_of_particles() -> None:
    model = by_features(bits(4, 5, **PER_CHANNEL, quantize_output=False, use_relu_multiplier=False, hgq_beta=1e-3))
    steps(model, torch.randn(4, 11, 3))
    final = pquant.finalize(model)
    for shape in ((2, 8, 3), (5, 1, 3), (3, 20, 3), (6, 3)):
        x = torch.randn(shape)
        y = model.eval()(x)
        assert y.shape == (*shape[:-1], 2) and torch.equal(final(x), y)
        rows = torch.stack([model(row) for row in x.reshape(-1, 3).split(1)]).reshape(y.shape)
        torch.testing.assert_close(rows, y)


def test_each_feature_of_a_particle_has_its_own_bits() -> None:
    model = by_features(bits(4, 5, **PER_CHANNEL, quantize_output=False, use_relu_multiplier=False))
    for layer, fractional in ((model[0], [1.0, 4.0, 2.0]), (model[1], [0.0, 3.0, 1.0, 5.0, 2.0])):
        quantizer = layer.input_quantizer
        with torch.no_grad():
            quantizer.f.copy_(torch.tensor(fractional).view(quantizer.f.shape))
        x = 3 * torch.randn(2, 7, len(fractional))
        expected = [fixed_point(x[..., n], int(layer is model[0]), 2, int(f)) for n, f in enumerate(fractional)]
        assert torch.equal(quantizer(x), torch.stack(expected, -1))


def test_bits_by_channel_of_images_stay_those_of_their_channels() -> None:
    net = nn.Sequential(nn.Conv1d(3, 5, 2), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(15, 2))
    model = pquant.compress(net, None, bits(4, 5, **PER_CHANNEL, quantize_output=False, use_relu_multiplier=False), torch.randn(4, 3, 8))
    widths = {name: value.numel() for name, value in model.named_parameters() if name.endswith("put_quantizer.f")}
    assert widths == {"0.input_quantizer.f": 3, "1.input_quantizer.f": 5, "4.input_quantizer.f": 15}


class Reparametrized(nn.Module):
    def __init__(self, hook: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
        hook(self.body[1])

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


HOOKS: dict[str, tuple[Callable[[nn.Module], Any], Callable[[nn.Module], Any], str]] = {
    "weight norm": (nn.utils.weight_norm, nn.utils.remove_weight_norm, r"remove_\w+"),
    "spectral norm": (nn.utils.spectral_norm, nn.utils.remove_spectral_norm, r"remove_\w+"),
    "parametrized weight norm": (
        parametrizations.weight_norm,
        partial(nn.utils.parametrize.remove_parametrizations, tensor_name="weight"),
        "remove_parametrizations",
    ),
    "parametrized spectral norm": (
        parametrizations.spectral_norm,
        partial(nn.utils.parametrize.remove_parametrizations, tensor_name="weight"),
        "remove_parametrizations",
    ),
    "torch's pruning": (
        partial(prune.l1_unstructured, name="weight", amount=0.5),
        partial(prune.remove, name="weight"),
        r"prune\.remove",
    ),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("example", [None, torch.ones(2, 4)])
@pytest.mark.parametrize("kind", HOOKS)
def test_a_weight_that_a_hook_makes_is_refused_until_it_is_removed(kind: str, example: Tensor | None) -> None:
    hook, remove, advice = HOOKS[kind]
    torch.manual_seed(0)
    model, x = Reparametrized(hook), torch.randn(6, 4)
    model(x)
    with pytest.raises(ConfigError, match=rf"(?s)'body\.1'.*{advice}"):
        pquant.compress(model, DST(), FIXED, example)
    remove(model.body[1])
    compressed = pquant.compress(model, DST(), FIXED, example)
    assert type(compressed.body[1]) is PQDense
    steps(compressed, x)
    assert torch.equal(pquant.finalize(compressed)(x), compressed.eval()(x))


METHODS: list[PruningMethod] = [
    DST(alpha=1e-2),
    CS(threshold_decay=1e-3),
    PDP(sparsity=0.5, epsilon="auto"),
    AutoSparse(threshold_init=-2.0, alpha_reset_epoch=3, autotune_epochs=0),
    MDMM(target_sparsity=0.5),
    Wanda(sparsity=0.5, t_start_collecting_batch=0, t_delta=2),
    ActivationPruning(threshold=0.4, t_start_collecting_batch=0, t_delta=2),
    Magnitude(sparsity=0.5),
]
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
each_section = pytest.mark.parametrize("section", [FIXED, TRAINED, bits(5, 7, granularity="per_channel")], ids=["fixed", "trained", "by channel"])


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3)
    )


@each_section
@each_method
def test_a_model_in_doubles_stays_in_doubles(method: PruningMethod, section: Quantization) -> None:
    x = torch.randn(8, 2, 8, dtype=torch.float64)
    model = pquant.compress(small_net().double(), method, section, x)
    pquant.set_stage(model.train(), pquant.Stage.TRAIN, pquant.Horizon(2, 2))
    optimizer = torch.optim.SGD(pquant.parameter_groups(model), 0.05)
    for _ in range(2):
        for _ in range(2):
            optimizer.zero_grad()
            y = model(x)
            assert y.dtype is torch.float64
            (y.square().mean() + pquant.penalty(model)).backward()
            optimizer.step()
            pquant.on_batch_end(model)
        pquant.on_epoch_end(model)
    model.eval()
    own = [name for name, parameter in model.named_parameters() if name.split(".")[-1] in ("weight", "bias") and parameter.dtype is not torch.float64]
    assert own == []
    for stage in (None, pquant.Stage.FINETUNE):
        if stage is not None:
            pquant.set_stage(model, stage)
        y, final = model(x), pquant.finalize(model)
        assert y.dtype is torch.float64 and torch.equal(final(x), y)
        assert pquant.ebops(final) == pquant.ebops(model) > 0 and pquant.sparsity(final) == pquant.sparsity(model) >= 0


@pytest.mark.parametrize("use_hgq", [False, True])
def test_doubles_are_never_narrowed_on_the_way(use_hgq: bool) -> None:
    fine = replace(bits(32, 32, default_weight_integer_bits=1, use_hgq=use_hgq, use_real_tanh=True), default_data_integer_bits=3)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 10), nn.Tanh(), nn.Linear(10, 5)).double()
    x = torch.randn(16, 20, dtype=torch.float64).clamp(-7, 7)
    compressed = pquant.compress(net, None, fine, x)
    assert (compressed(x) - net(x)).abs().max() < 1e-8
    assert torch.equal(pquant.finalize(compressed)[0].weight, fixed_point(net[0].weight.detach(), 1, 1, 32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@each_section
def test_a_model_in_half_precision_is_refused_by_name_or_keeps_it(section: Quantization, dtype: torch.dtype) -> None:
    x = torch.randn(8, 2, 8).to(dtype)
    try:
        model = pquant.compress(small_net().to(dtype), DST(threshold_init=0.05), section, x)
    except ConfigError as error:
        assert str(dtype).removeprefix("torch.") in str(error)
        return
    steps(model, x)
    y = model.eval()(x)
    assert y.dtype is dtype and bool(y.isfinite().all()) and torch.equal(pquant.finalize(model)(x), y)


BY_KEYWORD: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "dense": (partial(PQDense, 5, 3), (4, 5)),
    "conv": (partial(PQConv2d, 2, 3, 2), (4, 2, 5, 5)),
    "relu": (partial(PQActivation, "relu"), (4, 5)),
    "tanh": (partial(PQActivation, "tanh"), (4, 5)),
    "batch norm": (partial(PQBatchNorm2d, 2), (4, 2, 5, 5)),
    "pool": (partial(PQAvgPool2d, 2), (4, 2, 6, 6)),
}


@pytest.mark.parametrize("quantization", [None, FIXED, TRAINED], ids=["off", "fixed", "trained"])
@pytest.mark.parametrize("kind", BY_KEYWORD)
def test_the_input_may_be_given_by_its_keyword(kind: str, quantization: Quantization | None) -> None:
    make, shape = BY_KEYWORD[kind]
    layer, x = make(quantization=quantization), torch.randn(shape)
    for training in (True, False):
        layer.train(training)
        assert torch.equal(copy.deepcopy(layer)(input=x), copy.deepcopy(layer)(x))
    assert torch.equal(pquant.finalize(layer)(input=x), layer(x))


@pytest.mark.parametrize("section", [FIXED, bits(4, 5, data_granularity="per_channel", use_hgq=True)], ids=["fixed", "trained"])
def test_an_example_is_followed_through_calls_by_keyword(section: Quantization) -> None:
    class ByKeyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act, self.fc = nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(input=self.act(input=self.conv(input=x)))

    class ByPlace(ByKeyword):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.act(self.conv(x)))

    x, models = torch.randn(4, 2, 8), []
    for kind in (ByKeyword, ByPlace):
        torch.manual_seed(0)
        models.append(pquant.compress(kind(), None, section, x))
    assert torch.equal(models[0](x), models[1](x)) and pquant.ebops(models[0]) == pquant.ebops(models[1]) > 0


@pytest.mark.parametrize("finalized", [False, True])
@pytest.mark.parametrize("section", [None, FIXED, TRAINED], ids=["off", "fixed", "trained"])
def test_a_compressed_model_is_not_compressed_again(section: Quantization | None, finalized: bool) -> None:
    x = torch.randn(4, 5)
    model = pquant.compress(nn.Sequential(nn.Linear(5, 3), nn.ReLU()), DST(), section, x)
    if finalized:
        model = pquant.finalize(model)
    for again in (model, nn.Sequential(nn.Linear(5, 5), model), model[0]):
        with pytest.raises(ConfigError, match="(?i)compress"):
            pquant.compress(again, None, FIXED, x)


def trained_bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in model.named_parameters() if name.endswith(("quantizer.i", "quantizer.f"))}


def exploded(overflow_mode: str = "SAT", granularity: str = "per_tensor") -> tuple[nn.Module, set[str]]:
    """Return a model after two small steps and one with a huge gradient, and the layers whose bits that one took beyond 32."""
    torch.manual_seed(0)
    section = bits(3, 4, use_hgq=True, quantize_output=False, overflow_mode_parameters=overflow_mode, granularity=granularity)
    model = pquant.compress(nn.Sequential(nn.Linear(5, 6), nn.Sequential(nn.ReLU(), nn.Linear(6, 3))), None, section, torch.randn(4, 5))
    pquant.set_stage(model.train(), pquant.Stage.TRAIN, pquant.Horizon(1, 3))
    optimizer = torch.optim.SGD(pquant.parameter_groups(model), 1.0)
    x, away = 3 * torch.randn(8, 5), set[str]()
    for scale in (1e-9, 1e-9, 1e12):
        optimizer.zero_grad()
        (scale * model(x).square().sum()).backward()
        optimizer.step()
        away |= {name.split("_quantizer")[0].rpartition(".")[0] for name, value in trained_bits(model).items() if bool((value.abs() > 32).any())}
        pquant.on_batch_end(model)
    assert away, "the step went beyond"
    return model, away


@pytest.mark.parametrize("granularity", ["per_tensor", "per_weight"])
@pytest.mark.parametrize("overflow_mode", ["SAT", "SAT_SYM"])
def test_a_huge_gradient_leaves_bits_within_thirty_two(overflow_mode: str, granularity: str) -> None:
    model, _ = exploded(overflow_mode, granularity)
    found = trained_bits(model)
    assert found and all(bool((value.abs() <= 32).all()) for value in found.values())
    x = torch.randn(8, 5)
    y = model(x)
    y.sum().backward()
    assert bool(y.isfinite().all()) and all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    last = model.eval()(x)
    assert bool(last.isfinite().all()) and torch.equal(pquant.finalize(model)(x), last)


def test_bits_that_ran_away_are_said_at_the_end_of_the_epoch_with_layer_and_step(caplog: pytest.LogCaptureFixture) -> None:
    model, away = exploded()
    pquant.on_epoch_end(model)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    for name in away:
        # the third step, counted from 0 or from 1
        assert any(f"'{name}" in message and re.search(r"\bstep\D{0,4}[23]\b", message) for message in warnings), (name, warnings)


def test_bits_that_stay_within_are_not_said(caplog: pytest.LogCaptureFixture) -> None:
    model = pquant.compress(nn.Linear(5, 3), None, TRAINED, torch.randn(4, 5))
    steps(model, torch.randn(8, 5))
    assert not [message for message in caplog.messages if "step" in message]


@pytest.mark.parametrize("section", [FIXED, TRAINED], ids=["fixed", "trained"])
@pytest.mark.parametrize("kind", ["encoder", "encoder with nested tensors", "layer"])
def test_a_transformer_with_a_padding_mask_is_quantized_in_evaluation_too(kind: str, section: Quantization) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    net = layer if kind == "layer" else nn.TransformerEncoder(layer, 2, enable_nested_tensor=kind != "encoder")
    x, mask = torch.randn(3, 5, 8), torch.arange(5).expand(3, 5) >= torch.tensor([[5], [3], [2]])
    compressed = pquant.compress(net, None, section, x).eval()
    y = compressed(x, src_key_padding_mask=mask)
    with torch.no_grad():
        quick = compressed(x, src_key_padding_mask=mask)
        plain = net.eval()(x, src_key_padding_mask=mask)
    torch.testing.assert_close(quick[~mask], y[~mask].detach(), rtol=0, atol=1e-5)
    assert (quick - plain)[~mask].abs().max() > 1e-3, "nothing passed the layers by"
    with torch.no_grad():
        torch.testing.assert_close(pquant.finalize(compressed)(x, src_key_padding_mask=mask)[~mask], quick[~mask], rtol=0, atol=0)
