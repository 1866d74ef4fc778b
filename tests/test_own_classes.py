"""Classes of one's own, and models of other libraries, from the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

from pquant.config import build_experiment, check_complete
from pquant.errors import ConfigError
from pquant.own_classes import with_new_fields, without_foreign_fields
from pquant.training.task import check_model, task_for

ROOT = Path(__file__).parents[1]
NET = """
from torch import nn

class Deep(nn.Module):
    def __init__(self, input_shape, num_outputs, width=32, activation="tanh"):
        super().__init__()
        self.first, self.last = nn.Linear(input_shape[0], width), nn.Linear(width, num_outputs)
        self.activation = {"relu": nn.ReLU, "tanh": nn.Tanh}[activation]()

    def forward(self, x):
        return self.last(self.activation(self.first(x)))

class Narrow(Deep):
    def __init__(self):
        super().__init__((7,), 10)

class Failing(nn.Module):
    def __init__(self):
        raise KeyError("boom")

def three():
    return 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a module ``own_net``, which configurations may build from."""
    (tmp_path / "own_net.py").write_text(NET)
    (tmp_path / "broken_net.py").write_text("class Net(")
    (tmp_path / "needing_net.py").write_text("import no_such_package")
    monkeypatch.setenv("PQUANT_ALLOW", "own_net,no_net,broken_net,needing_net")
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("own_net", None)
    return tmp_path


def built(*overrides: str) -> nn.Module:
    """Return the model that a command line gives for 8x8 digits."""
    words = with_new_fields(overrides)
    with initialize_config_dir(config_dir=str(ROOT / "conf")):
        config = compose("config", overrides=words)
    check_complete(config)
    experiment = build_experiment(without_foreign_fields(config, words))
    splits = experiment.data.load(0)
    model = experiment.build_model(splits)
    check_model(model, splits, task_for(splits))
    return model


def test_fields_of_a_section_whose_class_is_given_may_be_new() -> None:
    words = ["model._target_=net.Deep", "model.width=7", "pruning.alpha=1", "seed=3"]
    assert with_new_fields(words) == ["++model._target_=net.Deep", "++model.width=7", "pruning.alpha=1", "seed=3"]
    assert with_new_fields(["model=timm", "model.img_size=32"]) == ["model=timm", "++model.img_size=32"]
    assert with_new_fields(["model=mlp", "model.sizes=[1]"]) == ["model=mlp", "model.sizes=[1]"]


def test_a_class_of_ones_own_takes_its_own_fields_of_the_preset_and_leaves_the_others(own: Path) -> None:
    model = built("model._target_=own_net.Deep", "model.width=7")
    assert model.first.out_features == 7 and isinstance(model.activation, nn.ReLU), "mlp gives activation: relu; sizes and batch_norm fall away"
    model = built("model=torch", "model._target_=own_net.Deep")
    assert model.first.out_features == 32 and isinstance(model.activation, nn.Tanh)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model._target_=own_net.Dep"], "unknown name in own_net 'Dep': did you mean 'Deep'"),
        (["model._target_=no_net.Deep"], "there is no module 'no_net' on Python's path"),
        (["model._target_=own_net.Deep", "model.widht=7"], "model: unknown argument of Deep 'widht': did you mean 'width'"),
        (["model._target_=own_net.Narrow"], "model: Narrow does not take the data"),
        (["model._target_=broken_net.Net"], "broken_net cannot be imported: SyntaxError: "),
        (["model._target_=needing_net.Net"], "needing_net cannot be imported: it needs the module 'no_such_package', which is not installed"),
        (["model._target_=own_net.Failing"], "model: cannot be built: KeyError: 'boom'"),
        (["model._target_=own_net.three"], "model must be a torch.nn.Module, or a function that returns one, got int"),
        (["model=torch"], "model._target_ must be given"),
        (["model._target_=torch.nn.Linaer"], "unknown name in torch.nn 'Linaer': did you mean 'Linear'"),
    ],
)
def test_what_is_wrong_with_it_is_said_in_one_line(own: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        built(*overrides)
    assert message in str(error.value) and "__" not in str(error.value).replace("__init__", "")


@pytest.mark.parametrize(("library", "name"), [("torchvision", "squeezenet1_1"), ("timm", "test_resnet")])
def test_a_model_of_a_library_is_made_for_the_data(library: str, name: str) -> None:
    pytest.importorskip(library)
    images = ["data=digits", "data.flatten=false"] if library == "timm" else ["data=digits"]
    if library == "timm":
        assert isinstance(built(f"model={library}", f"model.name={name}", *images), nn.Module)
    with pytest.raises(ConfigError, match=f"{library} has no model '{name}x'.*did you mean"):
        built(f"model={library}", f"model.name={name}x", *images)
    with pytest.raises(ConfigError, match="takes images .channels, height, width., got inputs of shape .64,."):
        built(f"model={library}", f"model.name={name}", "data=digits")
    with pytest.raises(ConfigError, match="model.name must be given"):
        built(f"model={library}")


def test_a_run_with_a_class_of_ones_own_resumes_and_saves_its_own_fields_alone(own: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "run.py"), "model._target_=own_net.Deep", "model.width=7", "tracker=none", "progress=quiet"]
    command += ["training.epochs=1", "training.pretraining_epochs=0", "training.fine_tuning_epochs=0", f"hydra.run.dir={tmp_path}/run"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(own), str(ROOT)])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    saved = OmegaConf.load(tmp_path / "run" / ".hydra" / "config.yaml").model
    assert saved == {"_target_": "own_net.Deep", "_partial_": True, "activation": "relu", "width": 7}
    again = subprocess.run([*command, "resume=auto"], env=environment, capture_output=True, text=True)
    assert again.returncode == 0 and json.loads((tmp_path / "run" / "summary.json").read_text())["epochs"] == 1, again.stderr
