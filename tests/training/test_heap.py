"""Memory that is kept."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import torch
from pquant.training.heap import keep_memory

assert {keeps} is False or keep_memory() is True
blocks = [(torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU()) for _ in range(6)]
net, x = torch.nn.Sequential(*(layer for block in blocks for layer in block)), torch.randn(32, 8, 32, 32)
def step():
    net(x).sum().backward()
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such option")
def test_steps_get_no_new_pages() -> None:
    faults = [
        int(subprocess.run([sys.executable, "-c", FAULTS.format(keeps=keeps)], check=True, capture_output=True, text=True).stdout)
        for keeps in (False, True)
    ]
    assert 4 * faults[1] < faults[0] and faults[0] > 1000
