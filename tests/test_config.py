"""Every file under conf/ composes and builds; what is wrong gets one clear line."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from pquant.config import CONFIGURATION_ERRORS, build_experiment, explain
from pquant.experiment import Experiment
from pquant.training.training import Training

CONF = Path(__file__).parents[1] / "conf"
OPTIONS = sorted(f"{file.parent.name}={file.stem}" for file in CONF.glob("*/*.yaml"))
NEEDED = {
    "data=table": ["data.path=x.csv"],
    "model=torch": ["model._target_=torch.nn.Identity"],
    "model=torchvision": ["model.name=resnet18"],
    "model=timm": ["model.name=resnet10t"],
}


def build(*overrides: str) -> Experiment:
    with initialize_config_dir(config_dir=str(CONF)):
        return build_experiment(compose("config", overrides=["tracker=none", *overrides]))


def refusal(*overrides: str) -> str:
    with pytest.raises(CONFIGURATION_ERRORS) as caught:
        build(*overrides)
    return explain(caught.value)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_of_every_group_builds(option: str) -> None:
    group = option.split("=")[0]
    built = getattr(build(option, *NEEDED.get(option, [])), group)
    assert built is not None


def test_each_yaml_names_its_target_and_schemas_stay_out_of_the_groups() -> None:
    for file in CONF.glob("*/*.yaml"):
        own = OmegaConf.load(file)
        assert "_target_" in own.keys() or "fixed" in own.defaults, file
    assert "schema" in ConfigStore.instance().repo


def test_a_whole_number_may_have_an_exponent() -> None:
    built = build("quantization=hgq", "quantization.target_ebops=1e4", "training.epochs=2e1")
    assert repr(built.quantization.target_ebops) == "10000" and repr(built.training.epochs) == "20"
    assert repr(Training(epochs=1e1).epochs) == "10"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("pruning=wnda", ["'wnda'", "did you mean 'wanda'"]),
        ("prunning=dst", ["'prunning'", "did you mean 'pruning'"]),
        ("pruning.alhpa=1", ["'alhpa'", "'pruning'", "did you mean 'alpha'"]),
        ("training.epocs=3", ["'epocs'", "did you mean 'epochs'"]),
        ("+foo=1", ["'foo'", "valid: data"]),
        ("pruning.alpha=abc", ["pruning.alpha must be a number, got 'abc'"]),
        ("training.epochs=many", ["training.epochs must be an integer, got 'many'"]),
        ("training.epochs=2.5", ["training.epochs must be an integer, got 2.5"]),
        ("training.epochs=1e40", ["Training.epochs must be in"]),
        ("training.batch_size=null", ["training.batch_size must not be null"]),
        ("pruning.alpha=nan", ["DST.alpha", "nan"]),
        ("pruning.max_pruning_pct=1.7", ["DST.max_pruning_pct must be in (0, 1], got 1.7"]),
        ("pruning.threshold_type=chanelwise", ["chanelwise", "channelwise"]),
        ("quantization.use_hgq=maybe", ["quantization.use_hgq must be true or false, got 'maybe'"]),
        ("quantization.layer_specific={a: {wieght: {f: 3}}}", ["'wieght'", "did you mean 'weight'"]),
        ("dry_run='False'", ["Experiment.dry_run must be true or false, got 'False'"]),
        ("seed=-1", ["Experiment.seed", "-1"]),
        ("seed=1.5", ["Experiment.seed must be an integer", "1.5"]),
        ("progress=plian", ["Experiment.progress", "did you mean 'plain'"]),
        ("from_epoch=al", ["Experiment.from_epoch", "did you mean 'all'"]),
        ("model.batch_norm='False'", ["model.batch_norm must be true or false, got 'False'"]),
        ("optimizer.fused=yes", ["optimizer.fused must be true or false, got 'yes'"]),
        ("+optimizer.amsgrad='true'", ["optimizer.amsgrad must be true or false, got 'true'"]),
        ("training.baseline='False'", ["training.baseline must be true or false, got 'False'"]),
        ("training.pareto='False'", ["training.pareto", "'False'"]),
        ("quantization.layer_specific={a: {weight: {enable: 'False'}}}", ["TensorFormat.enable must be true or false, got 'False'"]),
        ("training.epochs=-1", ["Training.epochs", "-1"]),
        ("training.rewind=every-round", ["Training.save_weights_epoch"]),
        ("model._target_=my_net.Net", ["my_net.Net", "PQUANT_ALLOW"]),
        ("model._target_=os.system", ["os.system"]),
        ("pruning._target_=pquant.pruning.DTS", ["did you mean 'DST'"]),
        ("finetuning.experiment_name=../evil", ["FineTuning.experiment_name", "'../evil'"]),
        ("finetuning.experiment_name=/evil", ["FineTuning.experiment_name", "'/evil'"]),
        ("finetuning.storage=../../study.db", ["FineTuning.storage", "'../../study.db'"]),
        ("fitcompress.pruning_schedule.start=-4", ["PruningSchedule.start", "above end"]),
    ],
)
def test_wrong_settings_get_one_line_that_names_them(override: str, parts: list[str]) -> None:
    line = refusal(override)
    assert "\n" not in line
    for part in parts:
        assert part in line


def test_extra_training_keys_reach_the_user() -> None:
    training = build("+training.warmup=3", "training.epochs=2").training
    assert training.extra == {"warmup": 3}
    assert training.epochs == 2


def test_layer_rules_may_use_dotted_names() -> None:
    rules = build("quantization.layer_specific={layers.0: {weight: {f: 3}}}").quantization.layer_specific
    assert rules == {"layers.0": {"weight": {"f": 3}}}


def test_scheduler_spans_the_whole_run() -> None:
    scheduler = build("training.pretraining_epochs=1", "training.epochs=5", "training.rounds=2", "training.fine_tuning_epochs=3").scheduler
    assert scheduler.keywords["T_max"] == 1 + 2 * 5 + 3


def test_no_code_that_reads_what_others_wrote_can_run_it() -> None:
    sources = [*CONF.parent.glob("pquant/**/*.py"), CONF.parent / "run.py"]
    loads = [line for source in sources for line in source.read_text().splitlines() if "torch.load(" in line]
    assert loads and all("weights_only=True" in line for line in loads)
    assert not [
        source for source in sources for word in ("import pickle", "yaml.load(", "joblib.load", "allow_pickle=True") if word in source.read_text()
    ]
