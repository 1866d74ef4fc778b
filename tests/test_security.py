"""What comes from others runs nothing, what is secret stays out of files, and a run writes into its own folder alone."""

import html
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from .test_run import ROOT, run

BRIEF = ["training.pretraining_epochs=0", "training.epochs=1", "training.fine_tuning_epochs=0", "progress=quiet"]
KEY = "0123456789abcdef0123456789abcdef01234567"
EVIL = "<script>alert(1)</script>"
AWAY = "../../away"


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where a run has been that names other folders and markup wherever it may name something; its own folder is ``place/outputs/run``."""
    place = tmp_path_factory.mktemp("place")
    table = place / "table.csv"
    table.write_text("x0,x1,y\n" + "".join(f"{i % 7},{i % 5},{EVIL if i % 2 else AWAY}\n" for i in range(200)))
    away = [f"{name}={AWAY}" for name in ("tracker.name", "tracker.group")]
    given = [f"+training.note='{EVIL}'", "data=table", f"data.path={table}", "tracker.mode=offline", f"hydra.run.dir={place}/outputs/run"]
    (place / "work").mkdir()
    run(*BRIEF, *away, *given, script=(str(ROOT / "run.py"),), cwd=place / "work", WANDB_API_KEY=KEY, WANDB_MODE="offline")
    return place


@pytest.mark.slow
def test_a_run_writes_into_its_folder_alone(place: Path) -> None:
    own = place / "outputs" / "run"
    assert (own / "summary.json").is_file() and list((own / "wandb").glob("offline-run-*"))
    assert [path for path in files(place) if own not in path.parents] == [place / "table.csv"]


@pytest.mark.slow
def test_the_key_of_wandb_is_in_no_file(place: Path) -> None:
    assert len(files(place)) > 10
    assert not [path for path in files(place) if KEY.encode() in path.read_bytes()]


@pytest.mark.slow
def test_the_report_shows_names_and_settings_as_text(place: Path) -> None:
    page = (place / "outputs" / "run" / "report.html").read_text()
    assert EVIL not in page and "<script" not in page
    assert page.count(html.escape(EVIL)) + page.count(html.escape(EVIL, quote=False)) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("key", ["resume", "from_run"])
@pytest.mark.parametrize("target", ["os.system", "pquant.signals.subprocess.getoutput"])
def test_a_run_folder_made_by_others_runs_nothing(key: str, target: str, place: Path, tmp_path: Path) -> None:
    config = OmegaConf.load(place / "outputs" / "run" / ".hydra" / "config.yaml")
    for section in ("model", "tracker"):
        config[section] = {"_target_": target, "_args_": [f"touch {tmp_path / 'owned'}"]}
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    OmegaConf.save(config, tmp_path / "run" / ".hydra" / "config.yaml")
    done = run(f"{key}={tmp_path / 'run'}", f"hydra.run.dir={tmp_path / 'mine'}", check=False)
    assert done.returncode == 1 and target in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "owned").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["finetuning.experiment_name=../x", "finetuning.experiment_name=/x", "finetuning.storage=../x.db"])
def test_a_study_is_not_led_elsewhere(name: str, tmp_path: Path) -> None:
    done = run("-m", "finetuning=random", "finetuning.num_trials=1", *BRIEF, name, script=(str(ROOT / "run.py"),), cwd=tmp_path, check=False)
    assert done.returncode == 1 and name.partition("=")[0].rpartition(".")[2] in done.stderr and len(done.stderr.splitlines()) == 1
    assert not [path for path in tmp_path.parent.iterdir() if path.name.startswith("x")] and not list(tmp_path.rglob("study.db"))
