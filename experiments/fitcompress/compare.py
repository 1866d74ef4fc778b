"""The search against uniform bits with global magnitude pruning: ``python experiments/fitcompress/compare.py NAME GOAL OVERRIDES...``.

Runs what is not there yet under outputs/fitcompress/NAME/, then writes results/NAME.csv and results/NAME.md.
"""

import csv
import json
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SEEDS = (0, 1, 2)
COLUMNS = [
    "variant",
    "seed",
    "test/accuracy",
    "val/accuracy",
    "compression",
    "size_bytes",
    "sparsity",
    "weight_bits",
    "predicted_loss",
    "wall_seconds",
]


def variants(goal: float) -> dict[str, list[str]]:
    """Return the overrides of each way to reach ``goal``.

    The uniform ones give all layers the same bits, with the best range for each layer, and prune the share that ends at the goal.
    """
    joint = ["pruning=none", "fitcompress.optimize_pruning=true", f"fitcompress.compression_goal={goal}"]
    ways = {"FITCompress, greedy": joint, "FITCompress, full": [*joint, "fitcompress.greedy_astar=false"]}
    for bits in (bits for bits in (8, 5, 4, 3) if 32 * goal <= bits):
        uniform = [f"fitcompress.quantization_schedule=[{bits - 1}]", f"fitcompress.compression_goal={bits / 32}"]
        ways[f"{bits} bits, magnitude"] = [*uniform, "pruning=magnitude", f"pruning.sparsity={1 - 32 * goal / bits}"]
    return ways


def run(folder: Path, overrides: list[str]) -> dict:
    """Return the figures of a run, made if it is not there."""
    if not (folder / "summary.json").exists():
        common = ["tracker=none", "progress=quiet", "fitcompress=on", f"hydra.run.dir={folder}"]
        subprocess.run([sys.executable, "run.py", *common, *overrides], cwd=ROOT, check=True)
    summary, found = (json.loads((folder / name).read_text()) for name in ("summary.json", "fitcompress.json"))
    return summary | {"compression": 8 * summary["size_bytes"] / (32 * summary["params"]), "predicted_loss": found["predicted_loss"]}


def spread(values: list[float], form: str) -> str:
    """Return mean and standard deviation."""
    return f"{statistics.mean(values):{form}} ± {statistics.stdev(values):{form}}"


def main(name: str, goal: float, overrides: list[str]) -> None:
    """Run all variants with all seeds, and write the table."""
    rows = []
    for variant, own in variants(goal).items():
        for seed in SEEDS:
            folder = ROOT / "outputs" / "fitcompress" / name / variant.replace(", ", "_").replace(" ", "_") / str(seed)
            rows.append({"variant": variant, "seed": seed} | run(folder, [*overrides, *own, f"seed={seed}"]))
    with (HERE / "results" / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    lines = ["| way | test accuracy % | size / float32 | zeros % | bits of the rest |", "|---|---:|---:|---:|---:|"]
    for variant in variants(goal):
        each = [row for row in rows if row["variant"] == variant]
        accuracy, zeros = ([100 * row[column] for row in each] for column in ("test/accuracy", "sparsity"))
        size, bits = ([row[column] for row in each] for column in ("compression", "weight_bits"))
        lines.append(f"| {variant} | {spread(accuracy, '.2f')} | {spread(size, '.4f')} | {spread(zeros, '.1f')} | {spread(bits, '.2f')} |")
    (HERE / "results" / f"{name}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), sys.argv[3:])
