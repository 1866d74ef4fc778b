"""Training steps on another device than the CPU: on a stand-in for one, which has no values to wait for, and on a GPU where there is one."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import TensorDataset

import pquant
from pquant.data import Splits
from pquant.pruning import DST, NoPruning, PruningMethod
from pquant.quantization import Quantization
from pquant.training import Stage, Training
from pquant.training.trainer import Trainer

from ..formats import EIGHT_BITS
from ..methods import every_method

HGQ = replace(EIGHT_BITS, use_hgq=True, hgq_beta=1e-6, hgq_gamma=1e-6)
QUANTIZATIONS = {
    "off": Quantization(enable_quantization=False),
    "fixed": EIGHT_BITS,
    "symmetric": replace(EIGHT_BITS, overflow_mode_data="SAT_SYM", overflow_mode_parameters="SAT_SYM", round_mode="RND_CONV"),
    "wrapped": replace(EIGHT_BITS, overflow_mode_data="WRAP"),
    "hgq": HGQ,
    "hgq by weight": replace(HGQ, granularity="per_weight", data_granularity="per_channel"),
    "hgq by value": replace(HGQ, granularity="per_channel", data_granularity="per_weight"),
    "hgq wrapped": replace(HGQ, overflow_mode_data="WRAP"),
}
METHODS = [NoPruning(), *every_method(start=1, delta=8)]
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
each_quantization = pytest.mark.parametrize("quantization", QUANTIZATIONS.values(), ids=QUANTIZATIONS.keys())
BATCH, STEPS = 8, 4


def data() -> Splits:
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn(3 * BATCH * STEPS, 2, 6, 6, generator=generator), torch.randint(0, 5, (3 * BATCH * STEPS,), generator=generator)
    return Splits(*(TensorDataset(*part) for part in zip(x.chunk(3), y.chunk(3), strict=True)), num_classes=5)


def trainer(method: PruningMethod, quantization: Quantization, stage: Stage, device: torch.device, **training: Any) -> Trainer:
    """Return a trainer whose model has entered a stage on the CPU, after some steps of training for the one that freezes masks."""
    torch.manual_seed(1)
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)]
    model = pquant.compress(nn.Sequential(*layers), method, quantization, data().train[:BATCH][0])
    if stage is not Stage.PRETRAIN:
        pquant.set_stage(model, Stage.TRAIN, pquant.Horizon(epochs=4, steps_per_epoch=STEPS))
    if stage is Stage.FINETUNE:
        for _ in range(3):
            model.train()(data().train[:BATCH][0])
            pquant.on_batch_end(model)
        pquant.set_stage(model, stage)
    constant = partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0)
    lengths = Training(pretraining_epochs=1, epochs=2, fine_tuning_epochs=1, batch_size=BATCH, **training)
    return Trainer(model, data(), lengths, partial(torch.optim.Adam, lr=1e-2), constant, device, seed=0)


class OnOneDevice(TorchDispatchMode):
    """Fails where an operation takes a tensor of the CPU's memory beside those of another device; scalars are handed over as numbers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        here = [tensor for tensor in tensors if tensor.is_cpu and tensor.ndim]
        assert not here or all(tensor.is_cpu for tensor in tensors), f"{func}: a tensor of shape {tuple(here[0].shape)} is in the CPU's memory"
        return func(*args, **(kwargs or {}))


def test_the_stand_in_notices_what_would_wait_or_fail() -> None:
    there, here = torch.ones(3, device="meta"), torch.ones(3)
    with pytest.raises(AssertionError, match="is in the CPU's memory"), OnOneDevice():
        there.index_select(0, here.long())
    for read in (float, bool, Tensor.tolist, Tensor.cpu):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read(there.sum())


@pytest.mark.parametrize("stage", Stage)
@each_quantization
@each_method
def test_a_step_on_another_device_stays_there_and_waits_for_nothing(method: PruningMethod, quantization: Quantization, stage: Stage) -> None:
    run = trainer(method, quantization, stage, torch.device("meta"), compile=False)
    x, y = torch.empty(BATCH, 2, 6, 6, device="meta"), torch.empty(BATCH, dtype=torch.int64, device="meta")
    run.model.train()
    with OnOneDevice():
        for _ in range(3):
            loss, auxiliary, _ = run.step(x, y)
        output = run.model.eval()(x)
    assert loss.is_meta and auxiliary.is_meta and output.is_meta
    assert all(parameter.grad is not None for name, parameter in run.model.named_parameters() if name.endswith(("weight", "bias")))


CPU, GPU = torch.device("cpu"), torch.device("cuda")
GPU_MARKS = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]


def on_a_gpu(test: Callable[..., None]) -> Callable[..., None]:
    for mark in GPU_MARKS:
        test = mark(test)
    return test


def slopes(run: Trainer, losses: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], times: float = 1.0) -> dict[str, Tensor]:
    """Return what a forward and a backward give, on the CPU, for inputs that are so many times as large."""
    run.model.train()
    x, y = (part.to(run.device) for part in data().train[:BATCH])
    loss, auxiliary = losses(times * x, y)
    run.optimizer.zero_grad()
    (loss + auxiliary).backward()
    given = {"loss": loss.detach(), "auxiliary loss": auxiliary.detach()}
    given |= {name: parameter.grad for name, parameter in run.model.named_parameters() if parameter.grad is not None}
    return {name: tensor.cpu() for name, tensor in given.items()}


def assert_alike(given: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert given.keys() == expected.keys()
    for name, tensor in given.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def compiled_slopes(method: PruningMethod, quantization: Quantization, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what compiled losses give, and what eager ones do, at the second step: from statistics and ranges that the first has moved."""
    torch._dynamo.reset()
    plain, compiled = (trainer(method, quantization, Stage.TRAIN, device, compile=False) for _ in range(2))
    losses = torch.compile(compiled._losses, fullgraph=True)
    slopes(plain, plain.losses, times=7.0), slopes(compiled, losses, times=7.0)
    return slopes(compiled, losses), slopes(plain, plain.losses)


@pytest.mark.parametrize(
    "quantization", [EIGHT_BITS, pytest.param(QUANTIZATIONS["hgq wrapped"], marks=pytest.mark.slow)], ids=["fixed", "hgq wrapped"]
)
def test_compiled_steps_have_the_gradients_of_eager_ones(quantization: Quantization) -> None:
    assert_alike(*compiled_slopes(DST(alpha=1e-2), quantization, CPU))


@pytest.mark.parametrize("device", [pytest.param(CPU, marks=pytest.mark.slow), pytest.param(GPU, marks=GPU_MARKS)], ids=str)
@each_quantization
@each_method
def test_all_compiled_steps_have_the_gradients_of_eager_ones(method: PruningMethod, quantization: Quantization, device: torch.device) -> None:
    assert_alike(*compiled_slopes(method, quantization, device))


@each_quantization
@each_method
@on_a_gpu
def test_a_gpu_gives_the_gradients_of_the_cpu(method: PruningMethod, quantization: Quantization) -> None:
    with torch.backends.cudnn.flags(allow_tf32=False):
        there, here = (trainer(method, quantization, Stage.TRAIN, device, compile=False) for device in (GPU, CPU))
        assert_alike(slopes(there, there.losses), slopes(here, here.losses))


@each_quantization
@on_a_gpu
def test_a_gpu_quantizes_to_the_values_of_the_cpu(quantization: Quantization) -> None:
    x = 9 * torch.randn(64, 2, 6, 6, generator=torch.Generator().manual_seed(3))
    layer = trainer(NoPruning(), quantization, Stage.TRAIN, CPU).model[0].eval()
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(layer).to(GPU).input_quantizer(x.to(GPU)).cpu(), layer.input_quantizer(x))
        for one, two in zip(copy.deepcopy(layer).to(GPU).effective(), layer.effective(), strict=True):
            assert torch.equal(one.cpu(), two)


@pytest.mark.parametrize("on_nan", ["stop", "skip_step"])
@each_method
@on_a_gpu
def test_the_host_runs_ahead_of_a_gpu(method: PruningMethod, on_nan: str) -> None:
    run = trainer(method, QUANTIZATIONS["hgq by weight"], Stage.TRAIN, GPU, compile=False, on_nan=on_nan)
    run.model.train()
    x, y = (part.to(GPU) for part in data().train[:BATCH])
    run.step(x, y)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run.step(x, y)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("compile", [False, True])
@on_a_gpu
def test_a_training_on_a_gpu_learns_and_goes_on_after_its_state(compile: bool) -> None:
    first, again = (trainer(DST(alpha=1e-2), HGQ, Stage.PRETRAIN, GPU, compile=compile) for _ in range(2))
    states: list[dict[str, Any]] = []
    first.fit(lambda row: states.append(first.state_dict()))
    again.load_state_dict(states[1])
    again.fit(lambda row: None)
    assert first.rows[-1]["train/loss"] < first.rows[0]["train/loss"]
    assert [row["epoch"] for row in again.rows] == [row["epoch"] for row in first.rows]
    assert again.rows[-1]["val/loss"] == pytest.approx(first.rows[-1]["val/loss"], rel=1e-2)
