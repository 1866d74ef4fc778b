"""Every configuration under experiments/ composes and builds, every table follows from results/, and jets run from a file to their table."""

import csv
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import pquant
from pquant.config import build_experiment
from pquant.data import Digits, Jets
from pquant.experiment import Experiment
from pquant.quantization import Quantization
from pquant.tracking import NoTracker

ROOT = Path(__file__).parents[1]
FOLDERS = sorted(file.parent.name for file in (ROOT / "experiments").glob("*/README.md"))
CONFIGS = sorted(f"{file.parent.name}/{file.stem}" for file in (ROOT / "experiments").glob("*/*.yaml") if file.stem != "gpu")
SHARED = {"all", "base", "gpu", "one_shot"}
TABLE = re.compile(r"(<!-- table: [^>]*-->\n).*?(<!-- end -->)", re.DOTALL)


def experiment(*overrides: str) -> Experiment:
    with initialize_config_dir(config_dir=str(ROOT / "conf")):
        return build_experiment(compose("config", overrides=list(overrides)))


@pytest.mark.parametrize("config", CONFIGS)
def test_every_configuration_builds(config: str) -> None:
    assert isinstance(experiment(f"experiment={config}").tracker, NoTracker)


@pytest.mark.parametrize("folder", FOLDERS)
def test_all_runs_every_variant_with_three_seeds_or_more_and_goes_on_where_it_stopped(folder: str) -> None:
    everything = OmegaConf.load(ROOT / "experiments" / folder / "all.yaml")
    params = everything.hydra.sweeper.params
    with initialize_config_dir(config_dir=str(ROOT / "conf")):
        (override,) = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(
            [f"experiment/{folder}={params[f'experiment/{folder}']}"]
        )
        swept = set(override.sweep_string_iterator())
    files = {file.stem for file in (ROOT / "experiments" / folder).glob("*.yaml")}
    assert swept == {name for name in files if name not in SHARED and not name.endswith("_base")}
    assert len(str(params.seed).split(",")) >= 3
    assert everything.resume == "auto" and everything.hydra.sweep.dir == f"outputs/{folder}"


def test_settings_of_an_experiment_give_way_to_the_command_line() -> None:
    assert experiment("experiment=jets_methods/wanda_hgq").quantization.use_hgq
    assert experiment("experiment=jets_methods/wanda_hgq", "training.epochs=7").training.epochs == 7
    full = experiment("experiment=resnet20_cifar/pdp", "+experiment@_global_=resnet20_cifar/gpu")
    assert full.data.limit is None and full.pruning.pruning_method == "pdp"  # type: ignore[attr-defined]


def test_tables_follow_from_the_results(tmp_path: Path) -> None:
    for name in ("experiments", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    pages = [page for page in tmp_path.rglob("*.md") if TABLE.search(page.read_text())]
    published = {page: page.read_text() for page in pages}
    for page, text in published.items():
        page.write_text(TABLE.sub(r"\1\2", text))
    scripts = sorted(tmp_path.glob("experiments/*/table.py"))
    assert [script.parent.name for script in scripts] == FOLDERS
    each = "import runpy, sys; scripts = sys.argv[1:]; sys.argv[1:] = []; [runpy.run_path(script, run_name='__main__') for script in scripts]"
    subprocess.run([sys.executable, "-c", each, *map(str, scripts)], check=True)
    assert {page: page.read_text() for page in pages} == published


def test_a_sweep_of_some_variants_replaces_their_rows_and_keeps_the_others(tmp_path: Path) -> None:
    tables = runpy.run_path(str(ROOT / "experiments" / "tables.py"))
    machine = {"cpu": "one", "cores": 2, "version/torch": "2"}

    def sweep(name: str, cpu: str, runs: dict[tuple[str, int], float]) -> Path:
        for (variant, seed), metric in runs.items():
            file = tmp_path / name / variant / str(seed) / "summary.json"
            file.parent.mkdir(parents=True)
            file.write_text(json.dumps(machine | {"cpu": cpu, "seed": seed, "metric": metric}))
        (tmp_path / name / "multirun.yaml").write_text(f"hydra: {{overrides: {{task: [experiment/x=a, seed=0, experiment=x/{name}]}}}}")
        return tmp_path / name

    tables["collect"](sweep("all", "one", {("a", 0): 1.5, ("a", 3): 2.5, ("b", 0): 3.0}), tmp_path / "results", ["metric"])
    tables["collect"](sweep("part", "two", {("a", 0): 4.0}), tmp_path / "results", ["metric"])
    assert (tmp_path / "results" / "runs.csv").read_text() == "variant,seed,metric\na,0,4.0\nb,0,3.0\n"
    origin = json.loads((tmp_path / "results" / "origin.json").read_text())
    assert origin["machines"] == ["one, 2 cores, torch 2", "two, 2 cores, torch 2"] and origin["command"] == "python run.py -m experiment=x/part"


def test_equal_runs_show_no_spread() -> None:
    spread = runpy.run_path(str(ROOT / "experiments" / "tables.py"))["spread"]
    assert [spread(values, ".1f") for values in ([], [2.0], [2.0, 2.0], [1.0, 3.0])] == ["-", "2.0", "2.0", "2.0 ± 1.4"]


def test_jets_from_a_file_to_the_table_from_any_folder(tmp_path: Path) -> None:
    y = np.array(["g", "q", "t", "w", "z"])[np.arange(400) % 5]
    x = np.random.default_rng(0).normal(np.char.equal(y[:, None], np.array(list("gqtwz") * 4)[:16]).astype(float), 0.5)
    np.savez(tmp_path / "jets.npz", x=x, y=y)
    short = ["training.pretraining_epochs=1", "training.epochs=2", "training.fine_tuning_epochs=1", "training.batch_size=64"]
    part, everything = ["experiment/jets_methods=dst_8bit,none_hgq", "seed=0,1"], ["experiment=jets_methods/all", "data.path=jets.npz", *short]
    subprocess.run([sys.executable, str(ROOT / "run.py"), "-m", *part, *everything], cwd=tmp_path, check=True, capture_output=True)
    for name in ("experiments", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    results = tmp_path / "experiments" / "jets_methods" / "results"
    (results / "runs.csv").unlink()
    command = [sys.executable, "experiments/jets_methods/table.py", "outputs/jets_methods"]
    subprocess.run(command, cwd=tmp_path, check=True)
    rows = list(csv.DictReader((results / "runs.csv").open()))
    assert [(row["variant"], row["seed"]) for row in rows] == [("dst_8bit", "0"), ("dst_8bit", "1"), ("none_hgq", "0"), ("none_hgq", "1")]
    assert all(0.2 < float(row["test/accuracy"]) <= 1 for row in rows)
    origin = json.loads((results / "origin.json").read_text())
    assert origin["command"] == " ".join(["python run.py -m", *everything])
    assert len(origin["dates"]) == 1 and "cores" in origin["machines"][0]
    page = (tmp_path / "experiments" / "jets_methods" / "README.md").read_text()
    line = next(line for line in page.splitlines() if line.startswith("| `dst_8bit` | ours"))
    mean = sum(float(row["test/accuracy"]) for row in rows[:2]) / 2
    assert line.split("|")[3].startswith(f" {100 * mean:.1f} ± ") and line.split("|")[-2] == " 2 "


def test_ebops_and_sparsity_of_numbers_alone_are_those_of_the_package() -> None:
    ruler = runpy.run_path(str(ROOT / "experiments" / "ruler.py"))
    splits = Digits().load(0)
    network = torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10))
    quantization = Quantization(
        default_weight_keep_negatives=True, default_weight_fractional_bits=3, default_data_keep_negatives=True, default_data_integer_bits=2,
        default_data_fractional_bits=2, quantize_output=False, use_hgq=True, granularity="per_weight", data_granularity="per_channel",
    )  # fmt: skip
    model = pquant.finalize(pquant.compress(network, None, quantization, splits.train[0][0][None]))
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    numbers = [(layer.weight.detach().T.numpy(), layer.bias.detach().numpy(), layer.operand().width().flatten().numpy()) for layer in layers]
    assert ruler["dense_ebops"](numbers) == pquant.ebops(model) > 0
    assert ruler["zeros"](weight for weight, _, _ in numbers) == pytest.approx(pquant.sparsity(model)) and pquant.sparsity(model) > 0


def test_splits_of_a_file_are_those_of_a_run(tmp_path: Path) -> None:
    labels = np.array(list("gqtwz"))[np.arange(100) % 5]
    np.savez(tmp_path / "jets.npz", x=np.random.default_rng(0).normal(3, 2, (100, 16)), y=labels)
    command = [sys.executable, str(ROOT / "experiments" / "splits.py"), "jets.npz", "splits", "4"]
    subprocess.run(command, cwd=tmp_path, check=True)
    splits, written = Jets(path=str(tmp_path / "jets.npz")).load(4), np.load(tmp_path / "splits" / "4.npz")
    for part in ("train", "validation", "test"):
        x, y = getattr(splits, part).tensors
        assert np.array_equal(written[f"x_{part}"], x) and np.array_equal(written[f"y_{part}"], y)
