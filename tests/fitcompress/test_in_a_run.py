"""The search in the life of a run: once, as training begins, and what it found is there after a resume."""

import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from pquant.config import build_experiment
from pquant.errors import ConfigError
from pquant.experiment import Experiment, Run
from pquant.fitcompress import FITCompress
from pquant.training.checkpoint import load_checkpoint, save_checkpoint

CONF = Path(__file__).parents[2] / "conf"
SMALL = [
    "tracker=none",
    "progress=quiet",
    "model.sizes=[null,12,null]",
    "fitcompress=on",
    "fitcompress.fisher.min_iterations=4",
    "fitcompress.fisher.max_iterations=4",
]
SHORT = ["training.pretraining_epochs=2", "training.epochs=2", "training.fine_tuning_epochs=1"]
BOTH = [*SMALL, *SHORT, "pruning=none", "fitcompress.optimize_pruning=true"]
SAME = ["test/accuracy", "test/loss", "val/loss", "sparsity", "size_bytes", "ebops"]


def build(*overrides: str) -> Experiment:
    with initialize_config_dir(config_dir=str(CONF)):
        return build_experiment(compose("config", overrides=list(overrides)))


def run(folder: Path, *overrides: str, resume: bool = False) -> dict:
    folder.mkdir(exist_ok=True)
    return build(*overrides).run(Run(folder, {}, "test", resume))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """Return the folder and summary of a run that searches for bits and masks; ``1.pt``... are its checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    from pquant import experiment

    def keep(path: Path, state: dict, sync: object) -> None:
        save_checkpoint(path, state)
        save_checkpoint(path.with_name(f"{state['position']}.pt"), state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "save_checkpoint", keep)
        return folder, run(folder, *BOTH)


def test_a_run_saves_what_it_found_and_ends_as_small(whole: tuple[Path, dict]) -> None:
    folder, summary = whole
    saved = json.loads((folder / "fitcompress.json").read_text())
    assert saved["reached"] and saved["compression"] <= 0.1
    table = {row["name"]: row for row in json.loads((folder / "model.json").read_text())["layers"]}
    for name, entry in saved["layers"].items():
        assert table[name]["quantizers"]["weight_quantizer"] | entry["format"] == table[name]["quantizers"]["weight_quantizer"]
    assert summary["sparsity"] >= 1 - sum(e["weights"] * (1 - e["sparsity"]) for e in saved["layers"].values()) / (64 * 12 + 12 * 10) - 1e-9


def test_pretraining_is_float_and_training_is_not(whole: tuple[Path, dict]) -> None:
    folder, _ = whole
    rows = json.loads(load_checkpoint(folder / "checkpoint.pt")["rows"])
    ebops = {row["stage"]: row["ebops"] for row in rows}
    assert ebops["train"] < 0.2 * ebops["pretrain"]
    assert [row["sparsity"] for row in rows[:2]] == [0, 0] and min(row["sparsity"] for row in rows[2:]) > 0.1


@pytest.mark.parametrize("epoch", [1, 2, 3, 4])
def test_a_run_resumed_at_any_epoch_ends_bit_identical(epoch: int, whole: tuple[Path, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, summary = whole
    save_checkpoint(tmp_path / "checkpoint.pt", load_checkpoint(folder / f"{epoch}.pt"))
    if epoch > 2:
        monkeypatch.setattr(FITCompress, "search", None)
    resumed = run(tmp_path, *BOTH, resume=True)
    assert {name: resumed[name] for name in SAME} == {name: summary[name] for name in SAME}
    ours, theirs = (load_checkpoint(one / "checkpoint.pt")["state"]["model"] for one in (tmp_path, folder))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items() if isinstance(value, torch.Tensor))


def test_a_result_given_makes_the_same_run_without_a_search(whole: tuple[Path, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, summary = whole
    monkeypatch.setattr(FITCompress, "search", None)
    again = run(tmp_path, *BOTH, f"fitcompress.result={folder / 'fitcompress.json'}")
    assert {name: again[name] for name in SAME} == {name: summary[name] for name in SAME}
    assert (tmp_path / "fitcompress.json").read_text() == (folder / "fitcompress.json").read_text()


def test_the_bits_go_with_a_pruning_method_and_into_a_run_without_the_search(whole: tuple[Path, dict], tmp_path: Path) -> None:
    folder, _ = whole
    saved = json.loads((folder / "fitcompress.json").read_text())
    given = build("tracker=none", "quantization.layer_specific=${fitcompress:" + str(folder / "fitcompress.json") + "}")
    assert given.quantization.layer_specific == saved["layer_specific"]
    summary = run(tmp_path, *SMALL, *SHORT, "pruning=magnitude", "pruning.sparsity=0.5")
    assert summary["sparsity"] >= 0.5 and summary["weight_bits"] < 4.1
    assert json.loads((tmp_path / "fitcompress.json").read_text())["pruning_share"] == 0


def test_what_does_not_go_together_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="use pruning=none"):
        run(tmp_path, *SMALL, *SHORT, "fitcompress.optimize_pruning=true")
    with pytest.raises(ConfigError, match="use_hgq"):
        run(tmp_path, *SMALL, *SHORT, "quantization=hgq")
    assert list(tmp_path.iterdir()) == []


def test_the_yaml_files_hold_the_switch_alone() -> None:
    for name, enabled in (("on", True), ("off", False)):
        assert OmegaConf.load(CONF / "fitcompress" / f"{name}.yaml").enable_fitcompress is enabled
        assert build(f"fitcompress={name}").fitcompress == FITCompress(enable_fitcompress=enabled)
