"""From the runs to the front: test accuracy and EBOPs of every archived model, ``python experiments/mnist_pareto/table.py outputs/mnist_pareto``."""

import csv
import json
import sys
from pathlib import Path

import matplotlib
import torch
from omegaconf import DictConfig, OmegaConf

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import pquant
from pquant.config import build_experiment
from pquant.experiment import Experiment
from pquant.layers.convert import compress
from pquant.pareto import front
from pquant.training.archive import load_archived

sys.path.insert(0, str(Path(__file__).parents[1]))
from tables import insert, spread

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LEVELS = (0.97, 0.96, 0.95, 0.90)
Point = dict[str, float | int | str]


def archived(run: Path) -> list[Point]:
    """Return a point for each model in the run's Pareto archive, finalized and judged on the test data."""
    config = DictConfig(OmegaConf.load(run / ".hydra" / "config.yaml"))
    experiment: Experiment = build_experiment(config)
    splits = experiment.data.load(experiment.seed)
    example = torch.stack([splits.train[index][0] for index in range(32)])
    model = compress(experiment.build_model(splits), experiment.pruning, experiment.quantization, example)
    trainer = experiment.trainer(model, splits)
    points: list[Point] = []
    with (run / "pareto.csv").open() as file:
        for row in csv.DictReader(file):
            trainer.model.load_state_dict(load_archived(run, int(row["epoch"])))
            accuracy = trainer.evaluate("test", "test", pquant.finalize(trainer.model))["test/accuracy"]
            points.append({"kind": "hgq", "seed": experiment.seed, "accuracy": accuracy, "ebops": pquant.ebops(trainer.model)})
    return points


def ended(run: Path) -> Point:
    """Return the point where a run has ended."""
    summary = json.loads((run / "summary.json").read_text())
    return {"kind": "dst_8bit", "seed": summary["seed"], "accuracy": summary["test/accuracy"], "ebops": summary["ebops"]}


def least(points: list[Point], kind: str, level: float) -> list[float]:
    """Return, by seed, the fewest EBOPs that reach an accuracy; seeds that do not are left out."""
    seeds = sorted({point["seed"] for point in points})
    found = ([point["ebops"] for point in points if point["kind"] == kind and point["seed"] == seed and point["accuracy"] >= level] for seed in seeds)
    return [min(each) for each in found if each]


def main(out: Path) -> None:
    """Write results/points.csv, results/table.md, the tables of README.md and docs/hgq.md, and docs/images/mnist_pareto.svg."""
    points = [point for run in sorted((out / "hgq").glob("[0-9]*")) for point in archived(run)]
    points += [ended(run) for run in sorted((out / "dst_8bit").glob("[0-9]*"))]
    with (HERE / "results" / "points.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(points[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(points)
    lines = ["| test accuracy of at least | EBOPs, HGQ | seeds | EBOPs, DST 8 bit | seeds |", "|---|---:|---:|---:|---:|"]
    for level in LEVELS:
        cells = []
        for kind in ("hgq", "dst_8bit"):
            values = least(points, kind, level)
            cells += [spread(values, ",.0f"), str(len(values))]
        lines.append(f"| {100 * level:.0f} % | {' | '.join(cells)} |")
    table = "\n".join(lines) + "\n"
    (HERE / "results" / "table.md").write_text(table)
    for page in (HERE / "README.md", ROOT / "docs" / "hgq.md"):
        insert(page, "experiments/mnist_pareto/table.py", table)
    print(table)
    figure, axis = plt.subplots(figsize=(6.5, 4), layout="constrained")
    for kind, label in (("hgq", "HGQ, rising price"), ("dst_8bit", "DST, 8 bits")):
        places = [(float(point["ebops"]), 100 * float(point["accuracy"])) for point in points if point["kind"] == kind]
        best = front(places, "minimize", "maximize")
        (line,) = axis.step(*zip(*(places[index] for index in best), strict=True), where="post", label=label)
        axis.scatter(*zip(*places, strict=True), s=8, color=line.get_color(), alpha=0.4)
    axis.set(xscale="log", xlabel="EBOPs", ylabel="test accuracy, %", ylim=(88, None))
    axis.legend(frameon=False)
    plt.rcParams["svg.hashsalt"] = "pquant"
    figure.savefig(ROOT / "docs" / "images" / "mnist_pareto.svg", metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
