"""Several processes that train one model together, as torchrun starts them: each takes its part of every batch, and what they see is added up.

All hold the same weights, masks and bits at every step, up to the order of sums the same as one process with the whole batch. Without other processes
nothing here does anything.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun has started (NCCL on GPUs, else gloo) for the time of the block."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def local_index() -> int | None:
    """Return which of its machine's processes this is, None where torchrun has started none."""
    return int(os.environ["LOCAL_RANK"]) if "LOCAL_RANK" in os.environ else None


def count() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def leads() -> bool:
    """Return whether this is the process that writes files and speaks."""
    return count() == 1 or dist.get_rank() == 0


def part(*batch: Tensor) -> tuple[list[Tensor], float]:
    """Return this process's part of a batch and what it weighs in the batch's mean; the whole one where there are too few examples for all."""
    world, size = count(), len(batch[0])
    if world == 1 or size < world:
        return list(batch), 1 / world
    mine = [tensor[dist.get_rank() :: world] for tensor in batch]
    return mine, len(mine[0]) / size


def total(x: Tensor) -> Tensor:
    """Return the sum of ``x`` over all processes, in place."""
    if count() > 1:
        dist.all_reduce(x)
    return x


def highest(x: Tensor) -> Tensor:
    """Return the maximum of ``x`` over all processes, in place."""
    if count() > 1:
        dist.all_reduce(x, dist.ReduceOp.MAX)
    return x


@torch.no_grad()
def total_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace all gradients by their sums over all processes."""
    if count() == 1:
        return
    for parameter in parameters:
        if parameter.grad is not None:
            total(parameter.grad)


@torch.no_grad()
def mean_buffers(model: nn.Module) -> None:
    """Replace the running statistics of batch norms by their means over all processes."""
    if count() == 1:
        return
    for module in model.modules():
        for name in ("running_mean", "running_var"):
            if isinstance(getattr(module, name, None), Tensor):
                total(getattr(module, name)).div_(count())
