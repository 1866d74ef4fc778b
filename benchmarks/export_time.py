"""How long ``export=rtl`` takes on the jet network, 8 bits and 80 % sparse, and on one of at most 5,000 LUTs.

Usage: python benchmarks/export_time.py [--data jets.npz]. Without data, 16 features in 5 overlapping classes are drawn: the size of the network
and the work are those of the real set, the accuracy is not.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "export_time.md"
COMMON = "data=jets model=jet_tagger pruning=magnitude tracker=none progress=quiet training.epochs=6 training.pretraining_epochs=2 " + (
    "training.fine_tuning_epochs=2 training.batch_size=512 export=rtl"
)
CASES = {
    "16-64-32-32-5, 8 bits, 80 % sparse": "pruning.sparsity=0.8 export.synthesize=no",
    "16-32-16-5, 6 bits, 80 % sparse, with Yosys": "model.sizes=[16,32,16,5] pruning.sparsity=0.8 quantization.default_weight_fractional_bits=5 "
    "quantization.default_data_fractional_bits=2 export.synthesize=yes",
}
SHOWN = ("luts_estimated", "luts_yosys", "latency_cycles", "registers", "simulator", "simulated_vectors", "vectors", "seconds", "yosys_seconds")


def generate(path: Path) -> None:
    """Write 20,000 jets of five classes."""
    random = np.random.default_rng(0)
    y = random.integers(0, 5, 20_000)
    centers = random.normal(size=(5, 16))
    x = (centers[y] + random.normal(size=(len(y), 16))).astype(np.float32)
    np.savez(path, x=x, y=np.array(["g", "q", "t", "w", "z"])[y])


def main() -> None:
    """Run both cases and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    data = parser.parse_args().data
    folder = ROOT / "outputs" / "export_time"
    folder.mkdir(parents=True, exist_ok=True)
    if data is None:
        data = folder / "jets.npz"
        generate(data)
    lines = ["| network | " + " | ".join(SHOWN) + " |", "|---" * (len(SHOWN) + 1) + "|"]
    for number, (name, overrides) in enumerate(CASES.items()):
        run = folder / str(number)
        command = [sys.executable, "run.py", *COMMON.split(), *overrides.split(), f"data.path={data}", f"hydra.run.dir={run}"]
        subprocess.run(command, cwd=ROOT, check=True)
        figures = json.loads((run / "summary.json").read_text())
        cells = [figures.get(f"rtl/{key}", "") for key in SHOWN]
        lines.append(
            f"| {name} | "
            + " | ".join(f"{cell:.1f}" if isinstance(cell, float) else f"{cell:,}" if isinstance(cell, int) else cell for cell in cells)
            + " |"
        )
    text = "\n".join(lines) + "\n"
    print(text)
    about = (
        "Written by `python benchmarks/export_time.py`, one thread. Yosys counts the whole (`yosys_seconds`) and then the layers; `seconds` has both."
    )
    RESULT.write_text(f"{about}\n\n{text}")


if __name__ == "__main__":
    main()
