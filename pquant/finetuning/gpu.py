"""A GPU for each worker of a study."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout


@contextmanager
def own_gpu(folder: Path) -> Iterator[None]:
    """Make the first free GPU the current device in the block; if no GPU is free, use the first. With fewer than two GPUs it does nothing.

    Each job locks its GPU by a file in the study's folder. Launchers that make only one GPU visible to each job (Slurm, Ray) choose it themselves.
    """
    count = torch.cuda.device_count()
    for index in range(count) if count > 1 else ():
        lock = FileLock(folder / "locks" / f"{socket.gethostname()}-gpu-{index}.lock", blocking=False)
        try:
            lock.acquire()
        except Timeout:
            continue
        torch.cuda.set_device(index)
        try:
            yield
        finally:
            lock.release()
        return
    yield
