"""Loops give the same values, bit for bit, in however many threads they run."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pquant import team
from pquant.loops import _at
from pquant.quantization import kernels
from pquant.quantization.quantizer import FixedPointQuantizer
from pquant.team import openmp, part, shared

ONE_FORMAT = [((1,), ()), ((7, 5), ()), ((600, 16), ()), ((2**13 + 1,), ())]
SHAPES = [*ONE_FORMAT, ((64, 33), (33,)), ((1000, 16), (16,)), ((6, 3, 50), (3, 1)), ((5, 40), (5, 40))]


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@shared
def begins(given: Any) -> None:
    """Write to each value where the part of the thread begins that has written it."""
    size = int(given[0])
    begin, end = part(size)
    _at(given, 1, size)[begin:end] = begin


def results(x: Tensor, grad: Tensor, k: Tensor, i: Tensor, f: Tensor, round_mode: str) -> list[Tensor]:
    """Return what all shared loops give."""
    form, symmetric = (-4.0, 3.75, 4.0, 0.25, kernels.MODES[round_mode]), round_mode == "TRN"
    values, passes = kernels.snapped_and_passing(x, form, (-4.1, 3.9))
    by_table = FixedPointQuantizer.of((k, i, f), round_mode, "SAT")(x)
    trained = kernels.quantized(x, True, i, f, round_mode, symmetric), *kernels.gradients(grad, x, i, f, True, round_mode, symmetric)
    return [kernels.snapped(x, form), values, passes, kernels.masked(grad, passes), by_table, *trained]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(SHAPES), st.sampled_from([2, 3, 7]), st.sampled_from(list(kernels.MODES)), st.integers(0, 2**16))
def test_values_are_those_of_one_thread(shapes: tuple[tuple[int, ...], tuple[int, ...]], threads: int, round_mode: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, grad = (4 * torch.randn(shapes[0], generator=generator) for _ in range(2))
    i, f = (torch.randint(-1, 5, shapes[1], generator=generator).float() for _ in range(2))
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(team, "WORTH_SHARING", 1)
        for count in (1, threads):
            torch.set_num_threads(count)
            found.append(results(x, grad, torch.ones_like(i), i, f, round_mode))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.skipif(openmp(Path(torch.__file__).parent / "lib") is None, reason="this PyTorch has no OpenMP library that can be called")
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_each_thread_has_a_part(threads: int) -> None:
    torch.set_num_threads(threads)
    size = team.WORTH_SHARING + 1
    out = torch.full((size,), -1.0)
    begins(size, out.data_ptr())
    each = -(-size // threads)
    assert out.tolist() == [float(n // each * each) for n in range(size)]


def test_few_values_are_left_to_one_thread() -> None:
    torch.set_num_threads(2)
    out = torch.full((team.WORTH_SHARING - 1,), -1.0)
    begins(len(out), out.data_ptr())
    assert not out.any()


ALONE = """
from pathlib import Path
import torch
torch.set_num_threads(2)
Path.glob = lambda self, pattern: iter(())
from pquant.quantization import kernels
from pquant.team import ALONE, openmp
assert openmp(Path("lib")) is None
x = torch.linspace(-8, 8, 2**14)
assert torch.equal(kernels.snapped(x, (-4.0, 3.75, 4.0, 0.25, 0)), (x * 4 + 0.5).floor().div(4).clamp(-4, 3.75))
print("alone")
"""


def test_without_an_openmp_library_one_thread_does_all(tmp_path: Path) -> None:
    assert openmp(tmp_path) is None
    said = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=120, check=False)
    assert said.stdout == "alone\n", said.stderr
