"""A course of tensors is, value by value and gradient by gradient, its functions one after the other."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pquant.course import Course, Each, InRows, Over
from pquant.flat import run_of, runs
from pquant.pruning import CS, DST, PDP, AutoSparse, PruningMethod
from pquant.pruning.method import Masked
from pquant.quantization.hgq import HGQQuantizer
from pquant.quantization.quantizer import FixedPointQuantizer, TensorFormat, bits_shape
from pquant.training.stage import Horizon, Stage


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, power):
        ctx.save_for_backward(x, scale)
        ctx.power = power
        return x * scale**power

    @staticmethod
    def backward(ctx, *grads):
        x, scale = ctx.saved_tensors
        return grads[0] * scale**ctx.power, grads[0] * x * ctx.power * scale ** (ctx.power - 1), None


SCALES = [[(), (), ()], [(3, 1), (4, 1), (2,)], [(3, 2), (4, 5), (2,)], [(1, 2), (1, 5), (1,)]]
SPANS = {
    "one": [[(0, 3)]],
    "a part, then all": [[(0, 2)], [(0, 3)]],
    "all, then a part": [[(0, 3)], [(0, 1)]],
    "all, then a part amid": [[(0, 3)], [(1, 2)]],
    "apart": [[(0, 1), (1, 3)]],
    "parts, then all, then parts": [[(0, 1), (2, 3)], [(0, 3)], [(0, 2), (2, 3)]],
}


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("spans", SPANS)
def test_a_course_is_its_functions_one_after_the_other(spans: str, scales: list[tuple[int, ...]]) -> None:
    x = [torch.randn(shape, requires_grad=True) for shape in ((3, 2), (4, 5), (2,))]
    layers = [[torch.rand(shape).add_(0.5).requires_grad_() for shape in scales] for _ in SPANS[spans]]
    passes, alone = [], list(x)
    for power, (each, scale) in enumerate(zip(SPANS[spans], layers, strict=True), 1):
        for begin, end in each:
            passes.append(Over(begin, end, [Each(_Scaled, (by,), (power,)) for by in scale[begin:end]]))
            alone[begin:end] = [one * by**power for one, by in zip(alone[begin:end], scale[begin:end], strict=True)]
    together, leaves = Course(x, passes)(), x + [by for scale in layers for by in scale]
    grads = [torch.randn_like(one) for one in x]
    for mine, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(mine, theirs)
    mine, theirs = (torch.autograd.grad(given, leaves, grads, allow_unused=True) for given in (together, alone))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)


SHAPES = ((3, 2), (4, 5), (2,))


def end_to_end(shapes: tuple[tuple[int, ...], ...] = SHAPES) -> list[nn.Parameter]:
    """Return parameters that lie end to end in memory."""
    sizes = [torch.Size(shape).numel() for shape in shapes]
    parts = torch.randn(sum(sizes)).split(sizes)
    return [nn.Parameter(part.view(shape)) for part, shape in zip(parts, shapes, strict=True)]


def test_runs_are_of_one_memory() -> None:
    tensors = [*end_to_end(), *end_to_end(), torch.randn(4, 4).t(), torch.randn(2).double()]
    assert runs(tensors) == [(0, 3), (3, 6), (6, 7), (7, 8)] and runs(tensors[1:2], 1) == [(1, 2)]
    whole = run_of(tensors[3:6])
    assert torch.equal(whole, torch.cat([tensor.detach().flatten() for tensor in tensors[3:6]])) and whole.data_ptr() == tensors[3].data_ptr()


def test_what_lies_end_to_end_is_taken_as_it_lies_and_found_again_when_it_moves() -> None:
    x = end_to_end()
    course = Course(x, [Over(0, 3, [Each(_Scaled, (torch.tensor(2.0),), (1,))] * 3)])
    for _ in range(2):
        assert [one.tolist() for one in course()] == [(2 * one).tolist() for one in x]
        assert [joined.data_ptr() for joined in course.joined] == [x[0].data_ptr()]
        for parameter, other in zip(x, end_to_end(), strict=True):
            parameter.data = other.data
    twin = copy.deepcopy(course)
    with torch.no_grad():
        x[0].add_(1)
    assert not torch.equal(twin()[0], course()[0]) and torch.equal(course()[0], 2 * x[0])
    x[1].data = x[1].detach().clone()
    assert len(course.joined) == 1 and torch.equal(course()[2], 2 * x[2]) and len(course.joined) == 3


def test_a_value_that_changes_between_forward_and_backward_is_not_taken_for_what_it_was() -> None:
    x = end_to_end()
    total = Course(x, [Over(0, 3, [Each(_Scaled, (torch.tensor(2.0),), (1,))] * 3)])()[0].sum()
    with torch.no_grad():
        x[0].add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        total.backward()


def pruned(method: PruningMethod, x: list[nn.Parameter]) -> list[Each]:
    layers = [method.pruner(one, nn.Linear) for one in x]
    for number, (one, weight) in enumerate(zip(layers, x, strict=True)):
        one.on_stage_start(Stage.TRAIN, Horizon(4, 4))
        if isinstance(method, PDP):
            one.start(number + 1, weight)  # type: ignore[attr-defined]
        for parameter in one.parameters():
            parameter.data.normal_(0.1, 0.3)
        for name, buffer in one.named_buffers():
            if name in ("beta", "alpha"):
                buffer.uniform_(0.2, 2)
    each = [one.soft() for one in layers]
    assert all(each)
    return each  # type: ignore[return-value]


def quantized(x: list[nn.Parameter], granularity: str, trained: bool, mode: str) -> list[Each]:
    made = []
    for one in x:
        bits = TensorFormat(k=True, i=0, f=3, round_mode=mode)  # type: ignore[arg-type]
        shape = bits_shape(granularity, tuple(one.shape))
        quantizer = HGQQuantizer(bits, shape, torch.inf) if trained else FixedPointQuantizer(bits, shape)
        for parameter in quantizer.parameters():
            parameter.data.add_(torch.randn_like(parameter))
        made.append(quantizer.each())
    assert all(made)
    return made  # type: ignore[return-value]


WAYS = {
    "masked": lambda x: [Each(Masked, (torch.rand_like(one) > 0.4,)) for one in x],
    "DST by channel": lambda x: pruned(DST(), x),
    "DST by weight": lambda x: pruned(DST(threshold_type="weightwise"), x),
    "AutoSparse": lambda x: pruned(AutoSparse(), x),
    "AutoSparse by layer": lambda x: pruned(AutoSparse(threshold_type="layerwise"), x),
    "CS": lambda x: pruned(CS(threshold_init=0.1), x),
    "PDP": lambda x: pruned(PDP(temperature=0.1, epsilon=1.0), x),
    "fixed": lambda x: quantized(x, "per_tensor", False, "RND"),
    "fixed to even": lambda x: quantized(x, "per_tensor", False, "RND_CONV"),
    "trained": lambda x: quantized(x, "per_tensor", True, "RND"),
    "trained by channel": lambda x: quantized(x, "per_channel", True, "TRN"),
    "trained by weight": lambda x: quantized(x, "per_weight", True, "RND"),
}


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=10)
@given(seed=st.integers(0, 2**30), scale=st.sampled_from([0.0, 0.3, 3.0]), apart=st.booleans())
def test_in_rows_values_and_gradients_are_those_of_each_tensor_alone(way: str, seed: int, scale: float, apart: bool) -> None:
    torch.manual_seed(seed)
    shapes = ((5, 7), (3, 4, 2), (4, 4))
    x = [nn.Parameter(torch.randn(shape)) for shape in shapes] if apart else end_to_end(shapes)
    for one in x:
        one.data.mul_(scale)
    each = WAYS[way](x)
    course = Course(x, [Over(0, 3, each)])
    together, alone = course(), [function(one) for function, one in zip(each, x, strict=True)]
    assert course.passes[0].rows is not None and issubclass(each[0].function, InRows)
    leaves = [*x, *(beside for function in each for beside in function.beside if beside.requires_grad)]
    grads = [torch.randn_like(one) for one in x]
    mine, theirs = (torch.autograd.grad(given, leaves, grads) for given in (together, alone))
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
