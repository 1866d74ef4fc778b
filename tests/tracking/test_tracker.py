import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from pquant.tracking import MlflowTracker, NoTracker, WandbTracker

CONF = Path(__file__).parents[2] / "conf"


@pytest.mark.parametrize(("name", "expected"), [("none", NoTracker()), ("wandb", WandbTracker()), ("mlflow", MlflowTracker())])
def test_each_yaml_gives_its_tracker_with_the_defaults_of_the_class(name, expected):
    with initialize_config_dir(str(CONF)):
        node = compose(overrides=[f"+tracker={name}"]).tracker
    assert OmegaConf.to_container(node) == vars(expected) | {"_target_": f"pquant.tracking.{type(expected).__name__}"}
    assert instantiate(node, _execution_whitelist_=("pquant.*",)) == expected


def test_no_tracker_takes_a_whole_run_and_writes_nothing(tmp_path):
    tracker = NoTracker()
    tracker.start(tmp_path, {"a": 1})
    tracker.log({"epoch": 1})
    tracker.summary({"accuracy": 1.0})
    tracker.finish("finished")
    assert list(tmp_path.iterdir()) == []


def test_tracking_and_reporting_import_nothing_heavy():
    code = (
        "import sys, pathlib; from pquant.tracking import NoTracker; import pquant.reporting; NoTracker().start(pathlib.Path('.'), {});"
        "print([name for name in ('wandb', 'mlflow', 'matplotlib', 'jinja2') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
