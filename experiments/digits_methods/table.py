"""From a sweep's folder to the table and the plot: ``python experiments/digits_methods/table.py outputs/digits_methods``."""

import csv
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from omegaconf import OmegaConf

sys.path.insert(0, str(Path(__file__).parents[1]))
from tables import insert, spread

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
ORDER = ["none", "dst", "pdp", "wanda", "mdmm", "cs", "autosparse", "activation_pruning"]
FIGURES = ["test/accuracy", "sparsity", "ebops", "wall_seconds"]


def read(sweep: Path) -> dict[str, list[dict]]:
    """Return the runs of each method and target."""
    runs: dict[str, list[dict]] = {}
    for file in sorted(sweep.rglob("summary.json")):
        config = OmegaConf.load(file.parent / ".hydra" / "config.yaml")
        method = config.pruning.get("pruning_method", "none")
        target = config.pruning.get("target_sparsity", config.pruning.get("sparsity"))
        runs.setdefault(method if target is None else f"{method} {100 * target:.0f} %", []).append(
            {"seed": config.seed, **json.loads(file.read_text())}
        )
    return runs


def main(sweep: Path) -> None:
    """Write results/runs.csv, results/table.md, the table of docs/pruning.md and docs/images/digits_methods.svg."""
    runs = read(sweep)
    with (HERE / "results" / "runs.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["method", "seed", *FIGURES])
        writer.writerows([method, run["seed"], *(run[name] for name in FIGURES)] for method, each in runs.items() for run in each)
    lines = ["| method | accuracy % | sparsity % | EBOPs | seconds | seeds |", "|---|---:|---:|---:|---:|---:|"]
    for method, each in sorted(runs.items(), key=lambda item: (ORDER.index(item[0].split()[0]), item[0])):
        accuracy, sparsity = ([100 * run[name] for run in each] for name in FIGURES[:2])
        ebops, seconds = ([run[name] for run in each] for name in FIGURES[2:])
        figures = [spread(accuracy, ".1f"), spread(sparsity, ".1f"), spread(ebops, ",.0f"), spread(seconds, ".1f"), str(len(each))]
        lines.append(f"| {method} | {' | '.join(figures)} |")
    table = "\n".join(lines) + "\n"
    (HERE / "results" / "table.md").write_text(table)
    insert(DOCS / "pruning.md", "experiments/digits_methods/table.py", table)
    print(table)
    plt.rcParams["svg.hashsalt"] = "pquant"
    figure, axis = plt.subplots(figsize=(6.5, 4), layout="constrained")
    for method, each in runs.items():
        axis.scatter([100 * run["sparsity"] for run in each], [100 * run["test/accuracy"] for run in each], label=method, s=28)
    axis.set(xlabel="zeros among the deployed weights, %", ylabel="test accuracy, %")
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(DOCS / "images" / "digits_methods.svg", metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
