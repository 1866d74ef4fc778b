"""A configuration builds what is on the list and nothing else."""

import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from pquant.config import CONFIGURATION_ERRORS, build_experiment, explain
from pquant.errors import ConfigError
from pquant.targets import KINDS, check_targets, is_allowed, named

CONF = Path(__file__).parents[1] / "conf"
NAMED = """
os.system os.popen os.remove os.execv subprocess.run subprocess.Popen subprocess.getoutput shutil.rmtree shutil.copyfile builtins.eval builtins.exec
builtins.open builtins.__import__ pickle.loads pickle.load marshal.loads runpy.run_path code.interact ctypes.CDLL importlib.import_module
pathlib.Path.unlink pathlib.Path.write_text urllib.request.urlretrieve webbrowser.open socket.create_connection tempfile.mkdtemp yaml.unsafe_load
logging.config.dictConfig functools.partial operator.methodcaller operator.attrgetter types.FunctionType joblib.load numpy.load numpy.fromfile
numpy.savetxt torch.load torch.save torch.hub.load torch.hub.load_state_dict_from_url torch.jit.load torch.package.PackageImporter
torch.ops.load_library torch.utils.cpp_extension.load torch.utils.cpp_extension.load_inline torch.utils.data.DataLoader
torch.utils.data.datapipes.utils.decoder.basichandlers torch.utils.model_zoo.load_url torch.nn.utils.convert_parameters.torch.load
torch.nn.modules.module.torch.hub.load torch.nn.init.ones_ torch.nn.functional.relu torch.nn.parallel.replicate.comm torch.optim.swa_utils.update_bn
torch.optim.lr_scheduler.partial torch.optim.optimizer.torch.load torch.nn.modules.module._load torch.nn.Module.register_module_full_backward_hook
torch.nn.Linear.load_state_dict torch.nn.Module.__init_subclass__ torch.nn.modules.module.warnings.warn torch.nn.attention.os.system
sklearn.utils._testing.assert_run_python_script_without_output sklearn.datasets.clear_data_home sklearn.datasets.dump_svmlight_file
sklearn.externals.array_api_compat.common._helpers.sys.exit optuna.create_study optuna.delete_study optuna.load_study
optuna.artifacts.download_artifact optuna.artifacts.upload_artifact optuna.storages.RDBStorage optuna.storages.journal.JournalFileBackend
optuna.samplers.nsgaii.BaseCrossover optuna.samplers._base.BaseSampler optuna.logging.set_verbosity hydra.utils.call hydra.utils.instantiate
hydra.utils.get_method hydra.utils.get_class omegaconf.OmegaConf.save omegaconf.OmegaConf.register_new_resolver
pquant.signals.subprocess.getoutput pquant.signals.requeue pquant.finetuning.study.storage pquant.finetuning.study.instantiate
pquant.tracking.files.write_atomic pquant.tracking.files.write_json pquant.data.digits.Path
pquant.training.checkpoint.load_checkpoint pquant.training.trainer.torch.load pquant.pruning.method.torch.hub.load pquant.data.files.np.load
pquant.experiment.Experiment pquant.targets.build pquant.config.build_experiment pquant.export.rtl.synthesis.subprocess.run
pquant.settings.ConfigStore.instance pquant.pruning.DST.error pquant.training.Training.replace
pquant.tracking.environment.subprocess.run wandb.init mlflow.set_tracking_uri
""".split()


def functions(*modules: str) -> Iterator[str]:
    for module in modules:
        names = import_module(module).__dict__.items()
        yield from (f"{module}.{name}" for name, found in names if inspect.isfunction(found) or inspect.isbuiltin(found))


DANGEROUS = [
    *NAMED,
    *functions("sklearn.datasets", "optuna.artifacts", "optuna.study", "torch.hub", "shutil", "os", "torch.nn.init", "pquant.tracking.files"),
]


def test_nothing_dangerous_is_on_the_list() -> None:
    assert len(set(DANGEROUS)) > 250
    for target in DANGEROUS:
        for section in (*KINDS, "sections that there are not"):
            assert named(section, target) is None, (section, target)


@pytest.mark.parametrize(
    ("section", "target"),
    [
        ("model", "torch.nn.Linear"),
        ("model", "torch.nn.modules.container.Sequential"),
        ("model", "pquant.models.CNN"),
        ("optimizer", "torch.optim.RAdam"),
        ("scheduler", "torch.optim.lr_scheduler.ReduceLROnPlateau"),
        ("sampler", "optuna.samplers.NSGAIISampler"),
        ("early_stopping", "optuna.pruners.MedianPruner"),
        ("training", "pquant.training.Training.from_config"),
        ("data", "pquant.data.Table"),
        ("distillation", "pquant.distillation.Teacher"),
    ],
)
def test_each_kind_is_taken_by_its_own_section(section: str, target: str) -> None:
    assert is_allowed(section, target)
    assert not [other for other in KINDS if other != section and is_allowed(other, target)]


def test_a_teachers_model_may_be_what_a_model_may_be() -> None:
    teacher = {"_target_": "pquant.distillation.Teacher", "model": {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "torch.nn.ReLU"}]}}
    check_targets({"distillation": teacher})
    with pytest.raises(ConfigError, match=r"'torch.nn.ReLU' \(distillation\): distillation takes a Settings"):
        check_targets({"distillation": teacher | {"source": {"_target_": "torch.nn.ReLU"}}})
    for name in ("os.system", "torch.optim.Adam", "pquant.distillation.Teacher"):
        with pytest.raises(ConfigError, match=rf"'{name}' \(model\): model takes a Module of torch.nn"):
            check_targets({"distillation": teacher | {"model": {"_target_": name}}})


def test_constructors_of_models_are_taken_by_name() -> None:
    pytest.importorskip("timm")
    assert is_allowed("model", "timm.models.resnet18") and not is_allowed("model", "timm.models.load_checkpoint")
    assert not is_allowed("model", "timm.create_model")


def test_users_packages_are_allowed_by_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PQUANT_ALLOW", raising=False)
    assert not is_allowed("model", "my_net.Net")
    monkeypatch.setenv("PQUANT_ALLOW", "my_net, other.*")
    assert is_allowed("model", "my_net.Net") and is_allowed("tracker", "other.deep.Thing")
    assert not is_allowed("model", "my_network.Net") and not is_allowed("model", "os.system")


def test_a_nested_target_is_checked_too_and_all_names_are_told() -> None:
    config = {"model": {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "os.system"}, {"_target_": "torch.nn.ReLU"}]}}
    with pytest.raises(ConfigError, match=r"'os.system' \(model\), 'a.B' \(tracker\).*torch.nn.*PQUANT_ALLOW=my_package"):
        check_targets(OmegaConf.create(config | {"tracker": {"_target_": "a.B"}, "seed": 3}))
    config["model"]["_args_"][0]["_target_"] = "${where}"  # type: ignore[index]
    with pytest.raises(ConfigError, match=r"'shutil.rmtree' \(model\)"):
        check_targets(OmegaConf.create(config | {"where": "shutil.rmtree"}))


@pytest.fixture(scope="module")
def saved() -> DictConfig:
    with initialize_config_dir(config_dir=str(CONF)):
        return compose("config", overrides=["tracker=none"])


@pytest.mark.parametrize(
    "target", ["os.system", "builtins.eval", "torch.hub.load", "sklearn.datasets.clear_data_home", "pquant.signals.subprocess.run"]
)
@pytest.mark.parametrize("section", ["model", "tracker", "data", "optimizer"])
def test_a_saved_configuration_builds_only_what_is_allowed(section: str, target: str, saved: DictConfig, tmp_path: Path) -> None:
    config = saved.copy()
    config[section] = {"_target_": target, "_args_": [f"touch {tmp_path / 'owned'}"]}
    with pytest.raises(CONFIGURATION_ERRORS) as caught:
        build_experiment(config)
    line = explain(caught.value)
    assert target in line and section in line and "\n" not in line
    assert not (tmp_path / "owned").exists()


def test_a_model_built_by_target_is_drawn_from_the_seed(saved: DictConfig) -> None:
    config = saved.copy()
    config.model = {
        "_target_": "torch.nn.Sequential",
        "_args_": [{"_target_": "torch.nn.Flatten"}, {"_target_": "torch.nn.LazyLinear", "out_features": 10}],
    }
    config.model._args_[1] = {"_target_": "torch.nn.Linear", "in_features": 64, "out_features": 10}
    weights = []
    for seed in (1, 1, 2):
        torch.rand(seed)
        config.seed = seed
        weights.append(build_experiment(config).model[1].weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
