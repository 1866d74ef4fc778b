"""What a long run of HGQ on the jet data costs, beside HGQ2 on the same jets, in turns.

    python benchmarks/long_run.py [--data jets.npz] [--batch 4096] [--turns 10] [--epochs 62] [--threads 1]
        [--hgq2 "uv run --isolated --no-project --python 3.11 --with hgq2==0.2.0 --with keras==3.15.1 --with jax==0.10.2 python"]

28,000 jets, the dense network 16-64-32-32-5, bits trained by weight, evaluation and checkpoint every 10 epochs. Ours is a run of ``run.py`` with
``training.compile=true`` and an empty compiler cache; HGQ2's is ``hgq2.py``: Keras on JAX, as its authors train. Both processes train
``turns`` x ``epochs`` epochs, one turn of ours, then one of theirs, while the other waits. A ratio is that of a turn of ours to the turn of theirs
after it; the first turn, in which both compile, does not count in the median. Compiling is what the first turn takes beyond the median of the others.
Wall time is what counts on an idle machine. On a busy one look at the CPU time of all threads of a process. ``data`` is an npz with ``x``
(40000, 16) and ``y``, of which 28,000 are trained on; without it, random values of that shape. With ``--hgq2 none`` ours is measured alone.
Writes ``benchmarks/results/long_run_<batch>.{json,md}``.
"""

import argparse
import json
import os
import runpy
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
HGQ2 = "uv run --isolated --no-project --python 3.11 --with hgq2==0.2.0 --with keras==3.15.1 --with jax==0.10.2 python"
EVALUATE_EVERY = 10


class Seconds(NamedTuple):
    """What a turn takes."""

    wall: float
    cpu: float


class Process:
    """A run in a process of its own, which trains one turn for each line of its input and prints the turn's seconds."""

    def __init__(self, *command: str, **environment: str) -> None:
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | environment)

    def turn(self) -> Seconds:
        """Train one turn; return its seconds."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("turn "):
                return Seconds(*map(float, line.split()[1:]))
        raise SystemExit("a process has ended; its error is above")


def ours(data: str, batch: int, epochs: int, turns: int, threads: int) -> None:
    """Run ``run.py``, whose epochs wait for their turn."""
    from pquant.training.trainer import Trainer

    fit = Trainer.fit

    def in_turns(self: Trainer, on_epoch: Any, *arguments: Any) -> None:
        sys.stdin.readline()
        begun = time.perf_counter(), time.process_time()

        def ended(row: Any) -> None:
            nonlocal begun
            on_epoch(row)
            if row["epoch"] % epochs == 0:
                print(f"turn {time.perf_counter() - begun[0]} {time.process_time() - begun[1]}", flush=True)
                sys.stdin.readline()
                begun = time.perf_counter(), time.process_time()

        fit(self, ended, *arguments)

    Trainer.fit = in_turns  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        sections = ["data=jets", f"data.path={data}", "model=jet_tagger", "quantization=hgq", "pruning=none", "tracker=none", "progress=quiet"]
        training = {"pretraining_epochs": 0, "epochs": epochs * turns, "fine_tuning_epochs": 0, "batch_size": batch, "threads": threads}
        training |= {"evaluate_every": EVALUATE_EVERY, "compile": "true"}
        sys.argv = ["run.py", *sections, *(f"training.{key}={value}" for key, value in training.items()), f"hydra.run.dir={folder}"]
        runpy.run_path(str(ROOT / "run.py"), run_name="__main__")


def random_jets(path: Path) -> None:
    """Write random values in the shape of the jet data."""
    random = np.random.default_rng(0)
    np.savez(path, x=random.normal(size=(40_000, 16)).astype(np.float32), y=random.choice(list("gqtwz"), 40_000))


def splits(data: str, path: Path) -> None:
    """Write the training and the validation set that our run has, for HGQ2."""
    from pquant.data import Jets

    loaded = Jets(path=data).load(0)
    parts = {name: getattr(loaded, part).tensors for name, part in (("train", "train"), ("val", "validation"))}
    np.savez(path, **{f"{axis}_{name}": tensor.numpy() for name, pair in parts.items() for axis, tensor in zip("xy", pair, strict=True)})


def summary(turns: Sequence[Seconds], epochs: int) -> dict[str, float]:
    """Return compile time, milliseconds of an epoch and seconds in all of a run, wall and CPU, by the seconds of its turns."""
    found = {}
    for kind in Seconds._fields:
        first, *others = (getattr(turn, kind) for turn in turns)
        steady = statistics.median(others)
        found |= {f"compile_{kind}_seconds": first - steady, f"epoch_{kind}_milliseconds": 1e3 * steady / epochs}
        found[f"total_{kind}_seconds"] = first + sum(others)
    return found


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="npz with x (40000, 16) and y")
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=62, help="of a turn")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; XLA takes as many as it finds cores")
    parser.add_argument("--hgq2", default=HGQ2, help="command of a Python that has HGQ2; none: without it")
    parser.add_argument("--ours", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ours:
        return ours(arguments.data, arguments.batch, arguments.epochs, arguments.turns, arguments.threads)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = arguments.data or str(folder / "jets.npz")
        if not arguments.data:
            random_jets(folder / "jets.npz")
        splits(data, folder / "splits.npz")
        options = ["--batch", str(arguments.batch), "--epochs", str(arguments.epochs), "--turns", str(arguments.turns)]
        own = [sys.executable, __file__, "--ours", "--data", data, "--threads", str(arguments.threads), *options]
        runs = {"pquant": Process(*own, TORCHINDUCTOR_CACHE_DIR=str(folder / "cache"))}
        if arguments.hgq2 != "none":
            script = [str(Path(__file__).with_name("hgq2.py")), str(folder / "splits.npz"), *options, "--evaluate-every", str(EVALUATE_EVERY)]
            runs["HGQ2"] = Process(*shlex.split(arguments.hgq2), *script)
        seconds: dict[str, list[Seconds]] = {name: [] for name in runs}
        for turn in range(arguments.turns):
            for name, run in runs.items():
                seconds[name].append(run.turn())
            print(turn + 1, {name: [round(value, 2) for value in taken[-1]] for name, taken in seconds.items()}, flush=True)
        for run in runs.values():
            run.process.kill()
    write(seconds, arguments)


def write(seconds: dict[str, list[Seconds]], arguments: argparse.Namespace) -> None:
    """Print and write the table."""
    whole = arguments.turns * arguments.epochs
    rows = {name: summary(taken, arguments.epochs) for name, taken in seconds.items()}
    threads = f"PyTorch on {arguments.threads} thread{'s' * (arguments.threads > 1)}"
    load = os.getloadavg()[1]
    lines = [
        f"{whole} epochs of 28,000 jets, batches of {arguments.batch:,}, HGQ by weight, {threads} of {os.cpu_count()} cores, load {load:.1f}:",
        "",
        "| | compiling, s | CPU s | an epoch, ms | CPU ms | all epochs without compiling, s | CPU s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in rows.items():
        each = [(row[f"compile_{kind}_seconds"], row[f"epoch_{kind}_milliseconds"]) for kind in Seconds._fields]
        cells = [f"{compiling:.1f}" for compiling, _ in each] + [f"{epoch:.1f}" for _, epoch in each]
        lines.append(f"| {' | '.join([name, *cells, *(f'{whole * epoch / 1e3:.1f}' for _, epoch in each)])} |")
    figures: dict[str, Any] = {"batch": arguments.batch, "epochs": whole, "threads": arguments.threads, "load": load, "seconds": seconds, **rows}
    for kind, word in zip(Seconds._fields, ("wall", "CPU"), strict=True) if len(seconds) > 1 else ():
        pairs = list(zip(*([getattr(turn, kind) for turn in taken] for taken in seconds.values()), strict=True))
        low, middle, high = statistics.quantiles((mine / theirs for mine, theirs in pairs[1:]), n=4)
        total = rows["pquant"][f"total_{kind}_seconds"] / rows["HGQ2"][f"total_{kind}_seconds"]
        figures[f"{kind}_ratio"] = {"ratio": middle, "low": low, "high": high, "with_compiling": total}
        lines += ["", f"{word} time, pquant / HGQ2: {middle:.2f} (quartiles {low:.2f}-{high:.2f}); with compiling, cold cache: {total:.2f}."]
    text = "\n".join(lines) + "\n"
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"long_run_{arguments.batch}.md").write_text(text)
    (RESULTS / f"long_run_{arguments.batch}.json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
