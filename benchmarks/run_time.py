"""What a run of the default job costs beside its training steps: its start, and the rest of an epoch.

    python benchmarks/run_time.py [--repeats 3] [--tracker wandb|none]

The start is a whole process without epochs; beside it, in turns, stands a process that does nothing but import the libraries that such a run needs.
The share of the steps is their time in that of an epoch with everything that it has: batches, validation, figures, checkpoint, files, tracker; that
of the training loop has the fetching of batches and the sums of losses in it too. Both are medians over the epochs, of which the first loads what the
others use. Writes ``benchmarks/results/run_time_<tracker>.{json,md}``.
"""

import argparse
import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pquant.training.trainer import Trainer

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
NO_EPOCHS = ["training.pretraining_epochs=0", "training.epochs=0", "training.fine_tuning_epochs=0"]
LIBRARIES = ["hydra", "torch"]
TRACKERS = {"wandb": ["wandb", "wandb.sdk.launch.inputs.internal"], "none": []}


def seconds(*command: str) -> float:
    """Return the wall time of a whole process of this Python."""
    start = time.perf_counter()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | {"WANDB_MODE": "offline"}
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True, env=environment)
    return time.perf_counter() - start


def shares(folder: Path, tracker: str) -> tuple[float, float]:
    """Return the median shares of an epoch's time that the default job spends in training steps, and in the loop over them."""
    spent, epochs = {"steps": 0.0, "loop": 0.0}, []

    def timed(name: str, call: Any) -> Any:
        def run(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                spent[name] += time.perf_counter() - start

        return run

    fit = Trainer.fit

    def watched(self: Trainer, on_epoch: Any, *arguments: Any) -> None:
        begun = time.perf_counter()

        def ended(row: Any) -> None:
            nonlocal begun
            on_epoch(row)
            whole, begun = time.perf_counter() - begun, time.perf_counter()
            epochs.append((spent["steps"] / whole, spent["loop"] / whole))
            spent.update(steps=0.0, loop=0.0)

        self.step, self._train_epoch = timed("steps", self.step), timed("loop", self._train_epoch)  # type: ignore[method-assign]
        fit(self, ended, *arguments)

    Trainer.fit = watched  # type: ignore[method-assign]
    os.environ["WANDB_MODE"] = "offline"
    sys.argv = ["run.py", f"tracker={tracker}", "progress=quiet", f"hydra.run.dir={folder / 'epochs'}"]
    runpy.run_path(str(ROOT / "run.py"), run_name="__main__")
    Trainer.fit = fit  # type: ignore[method-assign]
    steps, loops = zip(*epochs, strict=True)
    return statistics.median(steps), statistics.median(loops)


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tracker", choices=sorted(TRACKERS), default="wandb")
    arguments = parser.parse_args()
    imports = f"import {', '.join(LIBRARIES + TRACKERS[arguments.tracker])}"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        starts, bare = [], []
        for turn in range(arguments.repeats):
            bare.append(seconds("-c", imports))
            starts.append(seconds("run.py", *NO_EPOCHS, f"tracker={arguments.tracker}", f"hydra.run.dir={folder / str(turn)}"))
        steps, loop = shares(folder, arguments.tracker)
    figures = {
        "start_seconds": statistics.median(starts),
        "imports_seconds": statistics.median(bare),
        "start_over_imports": statistics.median(start / one for start, one in zip(starts, bare, strict=True)),
        "share_of_steps": steps,
        "share_of_loop": loop,
    }
    lines = [
        f"tracker={arguments.tracker}, medians of {arguments.repeats}:",
        "",
        "| | |",
        "|---|---:|",
        f"| a run without epochs | {figures['start_seconds']:.1f} s |",
        f"| the imports of its libraries alone | {figures['imports_seconds']:.1f} s |",
        f"| the run / the imports | {figures['start_over_imports']:.2f} |",
        f"| share of an epoch that is training steps | {100 * steps:.0f} % |",
        f"| the same with fetching their batches and adding up their losses | {100 * loop:.0f} % |",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    RESULTS.mkdir(exist_ok=True)
    name = f"run_time_{arguments.tracker}"
    (RESULTS / f"{name}.md").write_text(text)
    (RESULTS / f"{name}.json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
