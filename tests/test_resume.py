"""What goes on from an earlier run takes that run's settings, says what it does not take, and changes nothing if it is refused."""

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from pquant.resume import Run
from pquant.tracking.files import only_run_in
from pquant.training.checkpoint import load_checkpoint, save_checkpoint

from . import test_run
from .command_server import Commands

LENGTHS = ["training.pretraining_epochs=1", "training.epochs=3", "training.fine_tuning_epochs=0"]
SHORT = [*LENGTHS, "tracker=none", "progress=plain", "pruning=pdp", "quantization=fixed", "model.sizes=[null,8,null]"]


SERVERS: list[Commands] = []


@pytest.fixture(scope="module", autouse=True)
def server(commands: Commands) -> Iterator[None]:
    SERVERS.append(commands)
    yield
    SERVERS.clear()


def run(*overrides: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command: in a process of its own if it needs an environment of its own, else in a fork of the server."""
    if environment:
        return test_run.run(*overrides, check=check, **environment)
    done = SERVERS[0](*overrides)
    assert not check or done.code == 0, done.out + done.err
    return subprocess.CompletedProcess(overrides, done.code, done.out, done.err)


@pytest.fixture(scope="module")
def folder(server: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run of 1 + 3 epochs."""
    path = tmp_path_factory.mktemp("earlier") / "run"
    run(*SHORT, f"hydra.run.dir={path}")
    return path


def contents(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.rglob("*") if file.is_file()}


def summary(folder: Path) -> dict[str, float]:
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["resume=auto", *SHORT, "pruning=wanda"], ["pruning."]),
        (["resume=auto", *SHORT, "model.sizes=[null,9,null]"], ["model.sizes", "[None, 8, None]", "[None, 9, None]"]),
        (["resume=auto", *SHORT, "optimizer=sgd"], ["optimizer.", "started with other settings"]),
        (["resume=auto", *SHORT, "data=table", "data.path=x.csv"], ["data."]),
        (["resume=auto", *SHORT, "training.epochs=5"], ["training.epochs = 3 instead of 5", "to train longer: resume={folder} training.epochs=5"]),
        (["resume=auto", *SHORT, "scheduler=constant"], ["scheduler."]),
    ],
)
def test_other_settings_are_refused_and_change_nothing(overrides: list[str], parts: list[str], folder: Path) -> None:
    before = contents(folder)
    done = run(*overrides, f"hydra.run.dir={folder}", check=False)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert all(part.format(folder=folder) in done.stderr for part in parts)
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["resume={folder}", "pruning=wanda", "optimizer.lr=0.5"], "pruning cannot be given with resume"),
        (["resume={folder}", "optimizer.lr=0.5"], "optimizer.lr cannot be given with resume"),
        (["resume={folder}", "experiment=jets_methods/dst_8bit"], "experiment cannot be given with resume"),
        (["resume={folder}", "seed=1"], "seed cannot be given with resume"),
        (["resume={folder}", "~tracker"], "tracker cannot be given with resume"),
        (["from_run={folder}", "training.epochs=2"], "training.epochs cannot be given with from_run"),
        (["from_run={folder}", "+data.other=2"], "data.other cannot be given with from_run"),
        (["from_run={folder}", "data.path=new.csv"], "data.path cannot be given with from_run"),
        (["resume={folder}", "training.epochs=2"], "training.epochs = 2: the run in {folder} was made for 3 epochs and can only become longer"),
        (["resume={folder}", "tracker.project=x"], "tracker.project cannot be given: 'tracker' of the earlier run has no such field"),
    ],
)
def test_an_override_that_is_not_taken_is_named(overrides: list[str], name: str, folder: Path, tmp_path: Path) -> None:
    before = contents(folder)
    done = run(*(one.format(folder=folder) for one in overrides), f"hydra.run.dir={tmp_path / 'new'}", check=False)
    assert done.returncode == 1 and name.format(folder=folder) in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert contents(folder) == before


def test_a_finished_run_goes_on_longer_in_another_folder(folder: Path, tmp_path: Path) -> None:
    before, new = contents(folder), tmp_path / "longer"
    printed = run(f"resume={folder}", "training.epochs=5", f"hydra.run.dir={new}").stdout
    assert "resuming from epoch 4 to 6 instead of 4" in printed and "learning rate" in printed
    assert contents(folder) == before
    rows, earlier = (list(csv.DictReader((path / "metrics.csv").open())) for path in (new, folder))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4", "5", "6"] and rows[:4] == earlier
    whole = tmp_path / "whole"
    run(*SHORT, "training.epochs=5", f"hydra.run.dir={whole}")
    rates = [[float(row["lr"]) for row in csv.DictReader((path / "metrics.csv").open())] for path in (new, whole)]
    assert rates[0][4:] == pytest.approx(rates[1][4:], rel=1e-6) and rates[0][4] > 0
    assert summary(new)["epochs"] == 6 and OmegaConf.load(new / ".hydra" / "config.yaml").training.epochs == 5
    again = run(f"resume={new}", f"hydra.run.dir={tmp_path / 'log'}").stdout
    assert "resuming after epoch 6" in again


def test_a_longer_run_that_is_killed_at_once_resumes_as_one(folder: Path, tmp_path: Path) -> None:
    new, other = tmp_path / "longer", tmp_path / "uninterrupted"
    run(f"resume={folder}", "training.fine_tuning_epochs=2", f"hydra.run.dir={other}")
    (tmp_path / "tests_starter.py").write_text("import os\nclass Starter:\n    def start(self, folder, config): os._exit(9)\n")
    environment = {"PQUANT_ALLOW": "tests_starter", "PYTHONPATH": str(tmp_path)}
    given = ["training.fine_tuning_epochs=2", "tracker=none", "tracker._target_=tests_starter.Starter"]
    assert run(f"resume={folder}", *given, f"hydra.run.dir={new}", check=False, **environment).returncode == 9
    run(f"resume={new}", "tracker=none", f"hydra.run.dir={tmp_path / 'log'}")
    for name in ("epochs", "test/loss", "sparsity", "ebops"):
        assert summary(new)[name] == summary(other)[name], name
    assert [row["stage"] for row in csv.DictReader((new / "metrics.csv").open())][-3:] == ["train", "finetune", "finetune"]


def test_a_stage_that_is_over_does_not_become_longer(tmp_path: Path, folder: Path) -> None:
    tuned = tmp_path / "tuned"
    run(f"resume={folder}", "training.fine_tuning_epochs=1", f"hydra.run.dir={tuned}")
    done = run(f"resume={tuned}", "training.epochs=9", f"hydra.run.dir={tmp_path / 'new'}", check=False)
    assert done.returncode == 1 and "masks are frozen: raise training.fine_tuning_epochs" in done.stderr
    done = run(f"resume={folder}", "training.epochs=9", f"hydra.run.dir={folder}", check=False)
    assert done.returncode == 1 and "choose another hydra.run.dir" in done.stderr


def test_the_checkpoint_says_with_which_settings_a_run_goes_on(folder: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    config = OmegaConf.load(damaged / ".hydra" / "config.yaml")
    config.model.sizes = [None, 99, None]
    OmegaConf.save(config, damaged / ".hydra" / "config.yaml")
    run(f"from_run={damaged}", f"hydra.run.dir={tmp_path / 'again'}")
    assert summary(tmp_path / "again")["test/loss"] == summary(folder)["test/loss"]


def test_another_version_is_told_when_resuming(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = load_checkpoint(folder / "checkpoint.pt")
    older = folder.parent / "older"
    older.mkdir()
    save_checkpoint(older / "checkpoint.pt", state | {"versions": {**state["versions"], "torch": "1.0"}})
    config = OmegaConf.to_container(OmegaConf.load(folder / ".hydra" / "config.yaml"), resolve=True)
    assert Run(older, config, "", resume=True).checkpoint() is not None
    assert "the run began with torch 1.0 and resumes with" in caplog.text and "pquant" not in caplog.text.replace("pquant.resume", "")


@pytest.mark.parametrize("key", ["resume", "from_run"])
def test_the_environment_is_not_read_for_somebody_elses_configuration(key: str, folder: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    (foreign / ".hydra").mkdir(parents=True)
    for name, text in (("plain", "${oc.env:SECRET}"), ("hidden", "${oc.${training.extra.word}:SECRET}")):
        config = OmegaConf.load(folder / ".hydra" / "config.yaml")
        config.training.extra = {"word": "env", "note": text}
        OmegaConf.save(config, foreign / ".hydra" / "config.yaml")
        done = run(f"{key}={foreign}", f"hydra.run.dir={tmp_path / name}", check=False, SECRET="s3cret")
        assert done.returncode == 1 and "reads the environment variable 'SECRET'" in done.stderr and "s3cret" not in done.stderr + done.stdout
    if key == "resume":
        run(f"{key}={foreign}", f"hydra.run.dir={tmp_path / 'log'}", SECRET="s3cret", PQUANT_ALLOW="oc.env")


@pytest.mark.parametrize(
    "given",
    [
        pytest.param("postgresql://me:s3cret@host/db", marks=pytest.mark.slow),
        "postgresql://me:s3/cret@host/db",
        pytest.param("mysql://host/db?user=me&pwd=s3cret", marks=pytest.mark.slow),
    ],
)
def test_a_password_is_in_no_file_of_a_run(given: str, tmp_path: Path) -> None:
    refused = run(*SHORT, f"finetuning.storage='{given}'", f"hydra.run.dir={tmp_path / 'refused'}", check=False)
    assert refused.returncode == 1 and "finetuning.storage has a password" in refused.stderr and "cret" not in refused.stderr
    path = tmp_path / "run"
    run(*SHORT, "training.epochs=1", "finetuning.storage='${oc.env:DATABASE}'", f"hydra.run.dir={path}", DATABASE=given)
    assert (path / "report.html").is_file() and (path / ".hydra" / "overrides.yaml").is_file()
    assert not [name for name in contents(path) if b"cret@" in (path / name).read_bytes() or b"s3cret" in (path / name).read_bytes()]


SENDER = """
import os, signal
class Sender:
    def start(self, folder, config): {start}
    def log(self, row): {log}
    def summary(self, figures): {summary}
    def finish(self, status): {finish}
"""


@pytest.mark.parametrize("moment", ["start", pytest.param("log", marks=pytest.mark.slow), "summary", "finish"])
def test_a_signal_at_any_moment_ends_the_run_and_its_status_says_so(moment: str, tmp_path: Path) -> None:
    send = "os.kill(os.getpid(), signal.SIGTERM)"
    calls = dict.fromkeys(("start", "log", "summary", "finish"), "pass") | {moment: f"row['epoch'] == 4 and {send}" if moment == "log" else send}
    (tmp_path / "tests_sender.py").write_text(SENDER.format(**calls))
    environment = {"PQUANT_ALLOW": "tests_sender", "PYTHONPATH": str(tmp_path)}
    path = tmp_path / "run"
    done = run(*SHORT, "tracker._target_=tests_sender.Sender", f"hydra.run.dir={path}", check=False, **environment)
    assert done.returncode == 128 + signal.SIGTERM and "Traceback" not in done.stderr, done.stderr
    status = "finished" if moment == "finish" else "interrupted"
    assert json.loads((path / "status.json").read_text()) == {"status": status}


def test_ctrl_c_before_training_prints_no_traceback(tmp_path: Path) -> None:
    lines = ["import os, signal", "class Source:", "    def load(self, seed): os.kill(os.getpid(), signal.SIGINT)"]
    (tmp_path / "tests_source.py").write_text("\n".join(lines))
    environment = {"PQUANT_ALLOW": "tests_source", "PYTHONPATH": str(tmp_path)}
    done = run("~data", "+data._target_=tests_source.Source", f"hydra.run.dir={tmp_path / 'run'}", check=False, **environment)
    assert done.returncode == 130 and "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "status.json").exists() and os.listdir(tmp_path / "run") is not None


def test_a_second_command_on_a_running_runs_folder_changes_nothing(folder: Path, tmp_path: Path) -> None:
    running = tmp_path / "running"
    shutil.copytree(folder, running)
    with only_run_in(running):
        before = contents(running)
        for given in (SHORT, [*SHORT, "resume=auto"], [*SHORT, "pruning=wanda"], [f"resume={running}"]):
            places = [] if given[0].startswith("resume=") else [f"hydra.run.dir={running}"]
            done = run(*given, *(places or [f"hydra.run.dir={tmp_path / 'log'}"]), check=False)
            assert done.returncode == 1 and "another run is using" in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
            assert contents(running) | {"run.log": ""} == before | {"run.log": ""}


def test_a_link_out_of_a_foreign_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    foreign, mine = tmp_path / "foreign", tmp_path / "mine"
    shutil.copytree(folder, foreign)
    mine.mkdir()
    (mine / "epoch_0001.pt").write_text("mine")
    for name in ("pareto", ".hydra"):
        if (foreign / name).exists():
            shutil.rmtree(foreign / name)
        (foreign / name).symlink_to(mine)
        done = run(f"resume={foreign}", f"hydra.run.dir={tmp_path / 'log'}", check=False)
        assert done.returncode == 1 and f"{name} is a link out of its folder" in done.stderr, done.stderr
        (foreign / name).unlink()
    assert contents(mine).keys() == {"epoch_0001.pt"}


def test_a_configuration_does_not_allow_itself_packages(tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "own.yaml").write_text("# @package _global_\nhydra: {job: {env_set: {PQUANT_ALLOW: joblib}}}\n")
    given = [f"--config-dir={tmp_path / 'mine'}", "experiment=own", "scheduler._target_=joblib.load"]
    done = run(*given, f"hydra.run.dir={tmp_path / 'run'}", check=False)
    assert done.returncode == 1 and "hydra.job.env_set may not set PQUANT_ALLOW" in done.stderr


def test_a_longer_run_has_the_archive_of_the_earlier_one(tmp_path: Path) -> None:
    archived = [*SHORT, "training.pareto=true", "scheduler=constant", "pruning=none"]
    run(*archived, f"hydra.run.dir={tmp_path / 'short'}")
    run(f"resume={tmp_path / 'short'}", "training.epochs=5", f"hydra.run.dir={tmp_path / 'longer'}")
    run(*archived, "training.epochs=5", f"hydra.run.dir={tmp_path / 'whole'}")
    front = [sorted(path.name for path in (tmp_path / name / "pareto").iterdir() if "previous" not in path.name) for name in ("longer", "whole")]
    assert front[0] == front[1] and (tmp_path / "longer" / "pareto.csv").read_text() == (tmp_path / "whole" / "pareto.csv").read_text()
