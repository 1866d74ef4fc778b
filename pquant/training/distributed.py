"""Training with several processes, started by torchrun: each process takes a part of every batch, and gradients and statistics are summed.

All processes hold the same weights, masks and bits at every step. They are those of one process with the whole batch, up to the order of sums. With a
single process the functions of this module change nothing.
"""

import logging
import os
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pquant.errors import LostProcessError
from pquant.signals import Interrupted

log = logging.getLogger(__name__)

LARGE_MODEL = 1_000_000
"""Number of parameters from which gradients are summed over processes while backward computes other gradients."""
Losses = Callable[..., tuple[Tensor, ...]]


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Connect the processes that torchrun has started (NCCL on GPUs, else gloo) for the duration of the block.

    Raises:
        LostProcessError: another process has ended or does not answer.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    me = f"process {dist.get_rank()} of {dist.get_world_size()}"
    try:
        yield
    except Interrupted as interrupt:  # torchrun interrupts all processes when one has ended; process 0 logs how to resume
        if not leads():
            log.warning("%s: interrupted by %s; the same command with resume=auto resumes the run", me, interrupt)
        raise
    except RuntimeError as error:
        if not _is_lost(error):
            raise
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun would end this process too, which ends by itself
        raise LostProcessError(f"{me}: another process has ended or does not answer; the same command with resume=auto resumes the run") from error
    finally:
        dist.destroy_process_group()


def _is_lost(error: RuntimeError) -> bool:
    """Return whether the communication between processes failed; gloo raises plain RuntimeErrors."""
    text = str(error)
    return isinstance(error, dist.DistError) or "gloo" in text or "Connection closed by peer" in text or "Connection reset by peer" in text


def local_index() -> int | None:
    """Return the index of this process on its machine; None if torchrun did not start it."""
    return int(os.environ["LOCAL_RANK"]) if "LOCAL_RANK" in os.environ else None


def count() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def leads() -> bool:
    """Return whether this is process 0, which writes files and logs."""
    return count() == 1 or dist.get_rank() == 0


def part(*batch: Tensor) -> tuple[list[Tensor], float]:
    """Return this process's part of a batch, and the weight of the part in the mean of the batch.

    A batch with fewer examples than processes is not divided: each process gets the whole batch."""
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


def decided(choice: bool, device: torch.device) -> bool:
    """Return the ``choice`` of process 0, in all processes."""
    if count() == 1:
        return choice
    answer = torch.tensor(float(choice), device=device)
    dist.broadcast(answer, 0)
    return bool(answer)


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


class Overlapping(nn.Module):
    """The losses of training steps as a module for torch's DistributedDataParallel, which sums gradients over processes during backward.

    Args:
        losses: computes the losses of a batch: inputs, targets and weights, if any.
        model: the model that is trained.
    """

    def __init__(self, losses: Losses, model: nn.Module) -> None:
        super().__init__()
        self.model, self.losses = model, losses

    def forward(self, *batch: Tensor) -> tuple[Tensor, ...]:
        """Return the losses."""
        return self.losses(*batch)


def overlapping(losses: Losses, model: nn.Module) -> Losses | None:
    """Return ``losses`` whose backward averages the gradients over all processes; None for a single process or a small model.

    For a small model the overlap costs more time than it saves. The result holds for the parameters that are trained now; call this function again
    when other parameters are trained.
    """
    if count() == 1 or sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) < LARGE_MODEL:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer versions of torch rename broadcast_buffers
        return DistributedDataParallel(Overlapping(losses, model), broadcast_buffers=False, find_unused_parameters=True)


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of the gradients of all processes."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return total(x.clone())

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return total(gradient.clone())


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and biased variance of each channel, (channels,), over the batch of all processes, and the number of values per channel.

    Gradients flow to the inputs of all processes.
    """
    dims = [0, *range(2, x.ndim)]
    size = torch.full((1,), x.numel() // x.shape[1], dtype=x.dtype, device=x.device)
    sums = _Sum.apply(torch.cat((x.sum(dims), size)))
    number = sums[-1]
    mean = sums[:-1] / number
    centred = x - mean.view(-1, *(1,) * (x.ndim - 2))
    variance = _Sum.apply(centred.square().sum(dims)) / number
    return mean, variance, number.detach()
