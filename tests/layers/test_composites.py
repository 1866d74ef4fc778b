"""Attention and recurrences: equal to torch's in float, close to them in many bits, pruned and quantized by layer, finalized bit for bit."""

import copy
import itertools
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pquant
from pquant.layers import PQGRU, PQLSTM, PQRNN, PQActivation, PQDense, PQGRUCell, PQLSTMCell, PQMerge, PQMultiheadAttention, PQRNNCell, PQSoftmax
from pquant.pruning import DST, PruningMethod, Wanda
from pquant.quantization import Quantization

from .test_layers import at_each_stage, steps

BITS = {
    "default_data_keep_negatives": True,
    "default_data_integer_bits": 3,
    "default_data_fractional_bits": 5,
    "default_weight_keep_negatives": True,
    "default_weight_fractional_bits": 7,
    "use_relu_multiplier": False,
}
MANY = BITS | {"default_data_fractional_bits": 14, "default_weight_integer_bits": 2, "default_weight_fractional_bits": 16, "use_real_tanh": True}
SECTIONS = {
    "fixed": Quantization(**BITS),
    "inputs alone, by channel": Quantization(**BITS, quantize_output=False, granularity="per_channel", data_granularity="per_channel"),
    "trained": Quantization(**BITS, use_hgq=True, hgq_beta=1e-6, granularity="per_weight", data_granularity="per_channel"),
    "trained, wrapping": Quantization(**BITS, use_hgq=True, overflow_mode_data="WRAP"),
}
METHODS: dict[str, PruningMethod] = {
    "dst": DST(threshold_init=0.05, threshold_type="weightwise"),
    "wanda": Wanda(sparsity=0.5, t_delta=2, t_start_collecting_batch=0),
}


class Only(nn.Module):
    """Gives the first output of a module that is called with ``calls`` of its input."""

    def __init__(self, inner: nn.Module, times: int = 1) -> None:
        super().__init__()
        self.inner, self.times = inner, times

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(*(x,) * self.times)
        return y[0] if isinstance(y, tuple) else y


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], type[nn.Module]]] = {
    "attention": (lambda: Only(nn.MultiheadAttention(8, 2, batch_first=True), 3), (5, 8), PQMultiheadAttention),
    "attention, all options": (
        lambda: Only(nn.MultiheadAttention(8, 2, bias=False, add_bias_kv=True, add_zero_attn=True, batch_first=True), 3),
        (5, 8),
        PQMultiheadAttention,
    ),
    "lstm": (lambda: Only(nn.LSTM(6, 4, batch_first=True)), (5, 6), PQLSTM),
    "lstm, all options": (
        lambda: Only(nn.LSTM(6, 4, num_layers=2, bidirectional=True, proj_size=3, dropout=0.1, batch_first=True)),
        (3, 6),
        PQLSTM,
    ),
    "gru": (lambda: Only(nn.GRU(6, 4, num_layers=2, bidirectional=True, batch_first=True)), (3, 6), PQGRU),
    "rnn": (lambda: Only(nn.RNN(6, 4, nonlinearity="relu", batch_first=True)), (3, 6), PQRNN),
    "lstm cell": (lambda: Only(nn.LSTMCell(6, 4)), (6,), PQLSTMCell),
    "gru cell": (lambda: Only(nn.GRUCell(6, 4)), (6,), PQGRUCell),
    "rnn cell": (lambda: Only(nn.RNNCell(6, 4, bias=False)), (6,), PQRNNCell),
}


def make(kind: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    factory, shape, _ = KINDS[kind]
    return factory(), torch.randn(8, *shape)


@pytest.mark.parametrize("kind", KINDS)
def test_in_float_and_in_many_bits_it_is_torchs(kind: str) -> None:
    model, x = make(kind)
    model.eval()
    switched_off = pquant.compress(model, None, None, x)
    assert isinstance(switched_off.inner, KINDS[kind][2]) and pquant.unconverted(switched_off, x) == []
    torch.testing.assert_close(switched_off(x), model(x))
    quantized = pquant.compress(model, None, Quantization(**MANY), x)
    assert 0 < float((quantized(x) - model(x)).abs().max()) < 3e-3
    grads = []
    for one in (quantized, model):
        y = x.clone().requires_grad_()
        (one(y) * torch.linspace(-1, 1, 8).view(-1, *(1,) * (x.ndim - 1))).sum().backward()
        grads.append(y.grad)
    torch.testing.assert_close(*grads, rtol=2e-2, atol=2e-3)
    switched_off.load_state_dict({name: value for name, value in make(kind, seed=1)[0].state_dict().items()}, strict=False)
    torch.testing.assert_close(switched_off(x), make(kind, seed=1)[0].eval()(x))


def combinations() -> list[Any]:
    """Return all of kind, method and section; those that add least as slow ones."""
    usual = {("dst", "fixed"), ("dst", "trained")}
    return [
        pytest.param(kind, method, section, marks=[] if (method, section) in usual or kind == "lstm" else pytest.mark.slow)
        for kind, method, section in itertools.product(KINDS, METHODS, SECTIONS)
    ]


@pytest.mark.parametrize(("kind", "method", "section"), combinations())
def test_finalizing_and_saving_move_no_output_at_any_stage(kind: str, method: str, section: str) -> None:
    model, x = make(kind)
    model = pquant.compress(model, METHODS[method], SECTIONS[section], x)
    test = torch.randn_like(x) * 2
    for stage in at_each_stage(model, x):
        y = model.eval()(test)
        assert torch.equal(pquant.finalize(model)(test), y), stage
        fresh = pquant.compress(make(kind, seed=1)[0], METHODS[method], SECTIONS[section], x)
        fresh.load_state_dict(model.state_dict())
        assert torch.equal(fresh.eval()(test), y), stage
        assert bool(y.isfinite().all())
    assert pquant.sparsity(model) > 0.02 and pquant.ebops(model) == pquant.ebops(pquant.finalize(model)) > 0
    assert pquant.coverage(model)["multiplications"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_no_trained_bit_is_dead(kind: str) -> None:
    model, x = make(kind)
    model = pquant.compress(model, METHODS["dst"], SECTIONS["trained"], x)
    pquant.set_stage(model, pquant.Stage.TRAIN)
    y = model(x)
    ((y * torch.randn_like(y)).sum() + pquant.penalty(model)).backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert missing == []


def test_the_parts_of_attention_have_names_formats_and_pruners() -> None:
    x = torch.randn(4, 5, 8)
    rules = {
        "inner.q_proj": {"weight": {"f": 3}},
        "inner.attention.softmax": {"exponential": {"f": 2}, "reciprocal": {"f": 9}, "input": {"i": 5}},
        "inner.attention.scores": {"input": {"f": 1}},
    }
    model = pquant.compress(make("attention")[0], DST(disable_pruning_for_layers=["*.v_proj"]), Quantization(**BITS, layer_specific=rules), x)
    attention: Any = model.inner
    assert isinstance(attention.q_proj, PQDense) and isinstance(attention.attention.scores, PQMerge)
    assert attention.q_proj.weight_quantizer.numbers == (1, 0, 3) and attention.k_proj.weight_quantizer.numbers == (1, 0, 7)
    softmax = attention.attention.softmax
    assert isinstance(softmax, PQSoftmax) and softmax.input_quantizer.numbers == (1, 5, 5)
    assert softmax.exponential_quantizer.numbers == (0, 1, 2) and softmax.reciprocal_quantizer.numbers == (0, 1, 9)
    scores = attention.attention.scores
    assert scores.input_quantizer.numbers == scores.other_quantizer.numbers == (1, 3, 1)
    assert {name for name in pquant.layers.pruned_layers(model)} == {"inner.q_proj", "inner.k_proj", "inner.out_proj"}
    with pytest.raises(pquant.layers.base.ConfigError, match="has only input, output to quantize"):
        pquant.compress(make("attention")[0], None, Quantization(**BITS, layer_specific={"inner.attention.scores": {"weight": {"f": 1}}}), x)


def test_the_ebops_of_attention_by_hand() -> None:
    x = torch.randn(4, 5, 8)
    model = pquant.compress(make("attention")[0], None, Quantization(**BITS, quantize_output=False), x)
    rows = {row["name"]: row["ebops"] for row in pquant.layer_table(model)}
    data, exponential, reciprocal = 9, 9, 18
    assert rows["inner.attention.scores"] == rows["inner.attention.context"] == 2 * 5 * 5 * 4 * data * data
    assert rows["inner.attention.softmax"] == 2 * 5 * 5 * exponential * reciprocal
    assert sum(rows.values()) == pquant.ebops(model)


@pytest.mark.parametrize("section", ["inputs alone, by channel", "trained"])
@pytest.mark.parametrize("kind", ["attention", "lstm", "gru", "rnn"])
def test_sequences_of_other_lengths_work(kind: str, section: str) -> None:
    model, x = make(kind)
    compressed = pquant.compress(model, None, SECTIONS[section], x)
    y = compressed(torch.randn(3, 7, x.shape[2]))
    assert y.shape[:2] == (3, 7) and bool(y.isfinite().all())


@pytest.mark.parametrize("section", SECTIONS)
def test_what_a_mask_leaves_out_has_no_effect(section: str) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, activation="gelu"), 2)
    x = torch.randn(4, 5, 8)
    padding = torch.zeros(4, 5, dtype=torch.bool)
    padding[:, 3:] = True
    model = pquant.compress(layer, None, SECTIONS[section], {"src": x, "src_key_padding_mask": padding})
    assert pquant.unconverted(model, {"src": x, "src_key_padding_mask": padding}) == [] and isinstance(model.layers[0].activation, PQActivation)
    other = torch.where(padding[..., None], torch.randn_like(x) * 3, x)
    for mode in (True, False):
        model.train(mode)
        first, second = (model(values, src_key_padding_mask=padding)[:, :3] for values in (x, other))
        assert torch.equal(first, second) and bool(first.isfinite().all())


def test_what_cannot_be_unrolled_stays_float_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.head = nn.GRU(4, 6, batch_first=True), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([3] * len(x)), batch_first=True)
            return self.head(self.gru(packed)[1][0])

    x = torch.randn(4, 5, 4)
    with caplog.at_level(logging.WARNING):
        model = pquant.compress(Packed(), None, SECTIONS["fixed"], x)
    assert type(model.gru) is nn.GRU and type(model.head) is PQDense
    assert "stays float: GRU (gru): it gets packed sequences; pad them to one length" in caplog.messages
    with pytest.raises(TypeError, match="a quantized GRU takes tensors, got a PackedSequence: pad the sequences to one length"):
        PQGRU(4, 6, quantization=SECTIONS["fixed"])(nn.utils.rnn.pack_sequence([torch.randn(3, 4)]))


def test_built_directly_it_is_what_compress_makes() -> None:
    torch.manual_seed(0)
    section = SECTIONS["fixed"]
    float_layer = nn.LSTM(6, 4, batch_first=True)
    direct = PQLSTM(6, 4, batch_first=True, pruning=METHODS["dst"], quantization=section, name="lstm")
    direct.load_state_dict(float_layer.state_dict(), strict=False)
    x = torch.randn(8, 3, 6)
    converted = pquant.compress(nn.Sequential(float_layer), METHODS["dst"], section, x)[0]
    assert torch.equal(direct.eval()(x)[0], converted.eval()(x)[0]) and direct.l0.ih.name == "lstm.l0.ih"
    attention = PQMultiheadAttention(8, 2, quantization=section, batch_first=True)
    y = torch.randn(2, 3, 8)
    assert torch.equal(pquant.finalize(attention)(y, y, y)[0], attention.eval()(y, y, y)[0])


def test_a_copy_trains_on_its_own() -> None:
    model, x = make("lstm")
    model = pquant.compress(model, METHODS["dst"], SECTIONS["trained"], x)
    pquant.set_stage(model, pquant.Stage.TRAIN)
    twin, before = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    steps(twin, x, 2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items() if isinstance(value, Tensor))


@pytest.mark.slow
@pytest.mark.parametrize("section", ["fixed", "trained"])
@pytest.mark.parametrize("kind", ["attention", "lstm", "gru"])
def test_a_compiled_step_in_one_graph_is_the_eager_one(kind: str, section: str) -> None:
    model, x = make(kind)
    model = pquant.compress(model, METHODS["dst"], SECTIONS[section], x)
    pquant.set_stage(model, pquant.Stage.TRAIN)
    penalty, found = pquant.metrics.Penalty(model), []

    def loss(x: Tensor) -> Tensor:
        return model.train()(x).square().mean() + penalty()

    torch._dynamo.reset()
    for step in (loss, torch.compile(loss, fullgraph=True)):
        model.zero_grad()
        value = step(x)
        value.backward()
        found.append([value.detach(), *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)])
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(eager, compiled, rtol=1e-4, atol=1e-6)
