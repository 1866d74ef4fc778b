"""What a run costs by the size of the network and of the data: each part at three sizes, up to 100 times the smallest.

    python benchmarks/scaling_run.py [--parts width depth classes examples compress fitcompress rtl] [--repeats 5]

Each size runs in a process of its own, on one thread. Its time is the CPU time of the fastest repetition, which other processes on the machine
disturb least; its memory is the peak of the process above what it had before. The columns "growth" divide by the row before: time against size.
Writes ``benchmarks/results/scaling_run.{json,md}``; parts that are left out keep their results.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "scaling_run.json"
PARTS = {
    "width": ("step of an MLP with 2 hidden layers, by their width", (16, 160, 1600)),
    "depth": ("step of an MLP, by its hidden layers of 16", (2, 20, 200)),
    "classes": ("step of an MLP with 2 hidden layers of 16, by its classes", (10, 100, 1000)),
    "examples": ("epoch of an MLP with 2 hidden layers of 16, by its examples", (1000, 10_000, 100_000)),
    "compress": ("pquant.compress of an MLP, by its hidden layers of 16", (2, 20, 200)),
    "fitcompress": ("search of FITCompress for bits, by hidden layers of 16", (5, 20, 80)),
    "rtl": ("export=rtl of a network of one layer of 16 inputs, by its multiplications", (128, 512, 2048)),
}
BATCH, INPUTS, CLASSES = 64, 16, 10


def times(call: Callable[[], object], repeats: int) -> list[float]:
    """Return the CPU seconds of each of some calls."""
    moments = [time.process_time()]
    for _ in range(repeats):
        call()
        moments.append(time.process_time())
    return [end - begin for begin, end in zip(moments[:-1], moments[1:], strict=True)]


def mlp(width: int, depth: int, classes: int):  # noqa: ANN201
    """Return an MLP of float weights."""
    from torch import nn

    sizes = [INPUTS, *[width] * depth]
    hidden = [layer for fan_in, fan_out in zip(sizes[:-1], sizes[1:], strict=True) for layer in (nn.Linear(fan_in, fan_out), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(sizes[-1], classes))


def formats():  # noqa: ANN201
    """Return formats of eight bits."""
    from pquant.quantization import Quantization

    bits = {"keep_negatives": True, "fractional_bits": 4}
    return Quantization(
        **{f"default_{what}_{name}": value for what in ("weight", "data") for name, value in bits.items()}, default_data_integer_bits=3
    )


def splits(examples: int):  # noqa: ANN201
    """Return random data in CLASSES classes."""
    import torch
    from torch.utils.data import TensorDataset

    from pquant.data.splits import Splits

    few = TensorDataset(torch.randn(256, INPUTS), torch.arange(256) % CLASSES)
    return Splits(TensorDataset(torch.randn(examples, INPUTS), torch.arange(examples) % CLASSES), few, few, CLASSES)


def step(width: int, depth: int, classes: int, repeats: int) -> list[float]:
    """Measure training steps with DST."""
    import torch

    import pquant
    from pquant.pruning import DST

    x, y = torch.randn(BATCH, INPUTS), torch.randint(classes, (BATCH,))
    model = pquant.compress(mlp(width, depth, classes), DST(), formats(), x)
    optimizer = torch.optim.Adam(pquant.parameter_groups(model), 1e-3)
    pquant.set_stage(model, pquant.Stage.TRAIN, pquant.Horizon(epochs=1, steps_per_epoch=repeats))

    def one() -> None:
        loss = torch.nn.functional.cross_entropy(model(x), y) + pquant.penalty(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pquant.on_batch_end(model)

    return times(one, repeats)


def epoch(examples: int, repeats: int) -> list[float]:
    """Measure epochs of the trainer with DST, their evaluation on 256 examples included."""
    from functools import partial

    import torch

    import pquant
    from pquant.pruning import DST
    from pquant.training import Training
    from pquant.training.trainer import Trainer

    data = splits(examples)
    model = pquant.compress(mlp(16, 2, CLASSES), DST(), formats(), data.train[:BATCH][0])
    training = Training(pretraining_epochs=0, epochs=repeats, fine_tuning_epochs=0, batch_size=BATCH, compile=False)
    constant = partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0)
    moments = [time.process_time()]
    Trainer(model, data, training, torch.optim.Adam, constant, torch.device("cpu"), seed=0).fit(lambda row: moments.append(time.process_time()))
    return [end - begin for begin, end in zip(moments[:-1], moments[1:], strict=True)]


def compress(depth: int, repeats: int) -> list[float]:
    """Measure how long a float model takes to become a compressed one."""
    import torch

    import pquant
    from pquant.pruning import DST

    model = mlp(16, depth, CLASSES)
    return times(lambda: pquant.compress(model, DST(), formats(), torch.randn(BATCH, INPUTS)), repeats)


def fitcompress(depth: int, repeats: int) -> list[float]:
    """Measure the search for the bits of each layer, with the Fisher information of two batches."""
    import torch

    import pquant
    from pquant.fitcompress import FITCompress, StoppingRule
    from pquant.pruning import NoPruning

    data = splits(256).train
    settings = FITCompress(enable_fitcompress=True, fisher=StoppingRule(batch_size=BATCH, min_iterations=2, max_iterations=2))
    model = pquant.compress(mlp(16, depth, CLASSES), NoPruning(), formats(), data[:BATCH][0])
    settings.prepare(model)
    return times(lambda: settings.search(model, data, torch.nn.functional.cross_entropy), repeats)


def rtl(multiplications: int, repeats: int) -> list[float]:
    """Measure the export without simulator and Yosys, with 256 test vectors."""
    import torch

    import pquant
    from pquant.export import RTL
    from pquant.pruning import NoPruning

    data = splits(256)
    model = pquant.finalize(pquant.compress(torch.nn.Linear(INPUTS, multiplications // INPUTS), NoPruning(), formats(), data.train[:BATCH][0]))
    export = RTL(vectors=256, simulator="emulator", synthesize="no", by_layer=False)
    with tempfile.TemporaryDirectory() as folder:
        return times(lambda: export.export(model, data, Path(folder)), repeats)


def measure(part: str, size: int, repeats: int) -> dict[str, float]:
    """Return size, milliseconds and MiB of one part in this process."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    networks = {"width": (16, 2, CLASSES), "depth": (16, 2, CLASSES), "classes": (16, 2, CLASSES)}

    def run(size: int, repeats: int) -> list[float]:
        if part in networks:
            place = list(networks).index(part)
            network = list(networks[part])
            network[place] = size
            return step(*network, repeats)
        return {"examples": epoch, "compress": compress, "fitcompress": fitcompress, "rtl": rtl}[part](size, repeats)

    run(PARTS[part][1][0], 1)  # what is imported and allocated once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = run(size, repeats)
    return {"size": size, "ms": 1e3 * min(seconds), "mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024}


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Return the tables of all parts."""
    lines = [f"CPU milliseconds of one thread, fastest repetition, and MiB. {len(os.sched_getaffinity(0))} cores with other work.", ""]
    lines += ["| part | size | growth of size | ms | growth of ms | MiB |", "|---|---:|---:|---:|---:|---:|"]
    for part, (label, _) in PARTS.items():
        before: dict[str, float] | None = None
        for costs in found.get(part, []):
            grown = [f"{costs[name] / before[name]:.1f}" if before else "" for name in ("size", "ms")]
            lines.append(f"| {'' if before else label} | {costs['size']:,} | {grown[0]} | {costs['ms']:.1f} | {grown[1]} | {costs['mib']:.0f} |")
            before = costs
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--one", help="part,size: measure one and print it")
    arguments = parser.parse_args()
    if arguments.one:
        part, _, size = arguments.one.partition(",")
        print(json.dumps(measure(part, int(size), arguments.repeats)))
        return
    found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for part in arguments.parts:
        found[part] = []
        for size in PARTS[part][1]:
            command = [sys.executable, __file__, "--repeats", str(arguments.repeats), "--one", f"{part},{size}"]
            printed = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}).stdout
            found[part].append(json.loads(printed.splitlines()[-1]))
            print(part, found[part][-1], flush=True)
        RESULTS.write_text(json.dumps(found, indent=2) + "\n")
        RESULTS.with_suffix(".md").write_text(table(found))


if __name__ == "__main__":
    main()
