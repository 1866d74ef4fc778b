"""What a training step costs by the size of the network: an MLP with DST and fixed bits, 10 and 100 times as wide, as deep, with as many classes.

    python benchmarks/scaling_run.py [--steps 10]

Each size runs in a process of its own: milliseconds a step (median, batches of 64), weights, and MiB that the process has at most beyond what it had
after the smallest network. Writes ``benchmarks/results/scaling_run.{json,md}``.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
BASE = {"width": 16, "depth": 2, "classes": 10}
BATCH, INPUTS = 64, 16


def measure(width: int, depth: int, classes: int, steps: int) -> dict[str, float]:
    """Return the costs of a network in this process."""
    import torch

    import pquant
    from pquant.pruning import DST
    from pquant.quantization import Quantization

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sizes = [INPUTS, *[width] * depth]
    hidden = [layer for fan_in, fan_out in zip(sizes, sizes[1:], strict=False) for layer in (torch.nn.Linear(fan_in, fan_out), torch.nn.ReLU())]
    x, y = torch.randn(BATCH, INPUTS), torch.randint(classes, (BATCH,))
    model = pquant.compress(torch.nn.Sequential(*hidden, torch.nn.Linear(width, classes)), DST(), Quantization(), x)
    optimizer = torch.optim.Adam(pquant.parameter_groups(model), 1e-3)
    pquant.set_stage(model, pquant.Stage.TRAIN, pquant.Horizon(epochs=1, steps_per_epoch=steps))
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        loss = torch.nn.functional.cross_entropy(model(x), y) + pquant.penalty(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pquant.on_batch_end(model)
        seconds.append(time.perf_counter() - start)
    weights = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, torch.nn.Linear))
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"weights": weights, "ms": 1e3 * statistics.median(seconds[1:]), "mib": peak}


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--one", help="width,depth,classes: measure one network and print it")
    arguments = parser.parse_args()
    if arguments.one:
        measure(*BASE.values(), steps=2)  # what is imported and allocated once
        print(json.dumps(measure(*map(int, arguments.one.split(",")), arguments.steps)))
        return
    lines = [f"{len(os.sched_getaffinity(0))} cores with a load of {os.getloadavg()[2]:.0f}:", "", "| network | weights | ms a step | MiB |"]
    lines.append("|---|---:|---:|---:|")
    found = {}
    for name, factor in [("width", 1), *((name, factor) for name in BASE for factor in (10, 100))]:
        one = BASE | {name: BASE[name] * factor}
        command = [sys.executable, __file__, "--steps", str(arguments.steps), "--one", ",".join(map(str, one.values()))]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[f"{name} x {factor}"] = costs = json.loads(printed.splitlines()[-1])
        lines.append(f"| {name} {one[name]} | {costs['weights']} | {costs['ms']:.1f} | {costs['mib']:.0f} |")
        print(lines[-1], flush=True)
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "scaling_run.md").write_text("\n".join(lines) + "\n")
        (RESULTS / "scaling_run.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
