"""PQuantML's configurations become commands that compose and build what they meant."""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir

import pquant
from pquant.config import build_experiment
from pquant.convert_config import as_yaml, command, convert, overrides, read
from pquant.errors import ConfigError
from pquant.experiment import Experiment
from pquant.installation import CONF
from pquant.own_classes import with_model_preset
from pquant.pquantml import METHODS, meaning
from pquant.pruning import DST, MDMM, PDP, AutoSparse, NoPruning, Wanda

ROOT = Path(__file__).parents[1]


def build(old: dict[str, Any]) -> Experiment:
    given = overrides(convert(old))
    with initialize_config_dir(config_dir=str(CONF)):
        return build_experiment(compose("config", overrides=["tracker=none", *given]))


def pruned(**fields: Any) -> dict[str, Any]:
    return {"pruning_parameters": fields}


@pytest.mark.parametrize("name", METHODS)
def test_what_a_file_leaves_out_has_the_constructors_default_not_the_presets(name: str) -> None:
    assert build(pruned(pruning_method=name)).pruning == METHODS[name]()


@pytest.mark.parametrize(
    ("fields", "method"),
    [
        ({"pruning_method": "dst", "alpha": "1e-4", "threshold_type": "weightwise"}, DST(alpha=1e-4, threshold_type="weightwise")),
        ({"pruning_method": "autosparse", "alpha_reset_epoch": 7.0, "threshold_decay": 0}, AutoSparse(alpha_reset_epoch=7)),
        ({"pruning_method": "pdp", "structured_pruning": True, "sparsity": 0.4}, PDP(structured_pruning=True, sparsity=0.4)),
        ({"pruning_method": "mdmm", "scale": 3, "l0_mode": "smooth"}, MDMM(scale=3.0, l0_mode="smooth")),
        ({"pruning_method": "wanda", "N": 1, "M": 4}, Wanda(N=3, M=4)),
        ({"pruning_method": "dst", "disable_pruning_for_layers": [None, "layers.0"]}, DST(disable_pruning_for_layers=["layers.0"])),
        ({"pruning_method": "dst", "enable_pruning": False}, DST(enable_pruning=False)),
    ],
)
def test_fields_of_pruning_keep_their_values(fields: dict[str, Any], method: Any) -> None:
    assert build(pruned(**fields)).pruning == method


def test_n_of_m_is_said_to_count_the_other_way() -> None:
    assert "3 of 4" in meaning(pruned(pruning_method="wanda", N=1, M=4)).warnings[0]


def test_quantization_has_pquantmls_defaults_and_names() -> None:
    plain = build({"quantization_parameters": {}}).quantization
    assert (plain.default_weight_keep_negatives, plain.default_weight_integer_bits, plain.default_weight_fractional_bits) == (True, 0, 7)
    assert (plain.default_data_keep_negatives, plain.default_data_integer_bits, plain.default_data_fractional_bits) == (False, 0, 7)
    assert plain.use_relu_multiplier and not plain.quantize_output and not plain.use_hgq and not plain.pruning_first
    hgq = build(
        {"quantization_parameters": {"use_high_granularity_quantization": True, "granularity": "per_channel", "hgq_beta": "1e-6"}}
    ).quantization
    assert hgq.use_hgq and (hgq.hgq_beta, hgq.hgq_gamma, hgq.hgq_lr) == (1e-6, 3e-4, None)
    assert hgq.granularity == hgq.data_granularity == "per_channel"
    old = build(
        {"quantization_parameters": {"default_integer_bits": 1.0, "default_fractional_bits": 5.0, "use_symmetric_quantization": True}}
    ).quantization
    assert (old.default_weight_integer_bits, old.default_data_fractional_bits, old.overflow_mode_data) == (1, 5, "SAT_SYM")
    assert not build({"quantization_parameters": {"enable_quantization": False}}).quantization.enable_quantization
    assert build({"quantization_parameters": {}, "training_parameters": {"pruning_first": True}}).quantization.pruning_first


def test_dynamic_data_and_its_fewest_fractional_bits() -> None:
    dynamic = {"quantization_parameters": {"dynamic_data_quantization": True}}
    built = build(dynamic).quantization
    assert built.dynamic_data_quantization and (built.default_data_integer_bits, built.min_frac_bits) == (0, 0)
    assert any("that of the last batch" in warning for warning in meaning(dynamic).warnings)
    built = build(dynamic | pruned(pruning_method="fitcompress", min_frac_bits=2.0)).quantization
    assert built.dynamic_data_quantization and built.min_frac_bits == 2
    hgq = {"quantization_parameters": {"dynamic_data_quantization": True, "use_high_granularity_quantization": True}}
    assert not build(hgq).quantization.dynamic_data_quantization and build(hgq).quantization.min_frac_bits is None
    assert any("no effect with HGQ" in warning for warning in meaning(hgq).warnings)


def test_rules_of_layers() -> None:
    rules = {
        "layers.0": {"weight": {"integer_bits": 0.0, "fractional_bits": 3.0}, "input": {"keep_negatives": 1.0, "quantize": False}},
        "layers.2": {"integer_bits": 4, "fractional_bits": 6},
        "tanh": {"bits": 4},
    }
    new = meaning({"quantization_parameters": {"layer_specific": rules}})
    assert new.values["quantization.layer_specific"] == {
        "layers.0": {"weight": {"i": 0, "f": 3}, "input": {"k": True, "enable": False}},
        "layers.2": {"weight": {"i": 4, "f": 6}, "bias": {"i": 4, "f": 6}},
    }
    assert [warning for warning in new.warnings if "tanh.bits" in warning]
    assert build({"quantization_parameters": {"layer_specific": rules}}).quantization.formats("layers.0").weight.f == 3


def test_training_and_the_optimizer() -> None:
    told = {"epochs": 10, "fine_tuning_epochs": 2, "save_weights_epoch": -1.0, "batch_size": 32, "optimizer": "sgd", "lr": 0.01, "momentum": 0.8}
    told |= {"l2_decay": 1e-3, "lr_schedule": "multistep", "milestones": [5, 8], "gamma": 0.2, "cosine_tmax": 9, "label_smoothing": 0.0}
    built = build({"training_parameters": told})
    assert (built.training.epochs, built.training.pretraining_epochs, built.training.batch_size) == (10, 50, 32)
    assert built.optimizer.keywords | {"fused": None} == {"lr": 0.01, "momentum": 0.8, "nesterov": True, "weight_decay": 1e-3, "fused": None}
    assert built.scheduler.keywords == {"milestones": [5, 8], "gamma": 0.2}
    unused = "training_parameters: cosine_tmax has no effect with optimizer 'sgd' and lr_schedule 'multistep'"
    assert meaning({"training_parameters": told}).warnings == [unused]
    for given, expected in (({}, (1e-2, 1.0)), ({"lambda_p": "1e-3", "p_norm": 0.8, "l2_decay": 1.0}, (1e-3, 0.8))):
        old = {"training_parameters": {"optimizer": "pAdam", "lr": 0.01} | given}
        decay = build(old).optimizer
        assert decay.func.__name__ == "PAdam" and (decay.keywords["weight_decay"], decay.keywords["p_norm"]) == expected
        told_of = ["training_parameters: l2_decay has no effect with optimizer 'padam' and lr_schedule ''"] if given else []
        assert meaning(old).warnings == told_of
    outside = {"training_parameters": {"epochs": 3}, "batch_size": 16, "lr": 0.5, "lr_schedule": "cosine", "cosine_tmax": 7, "dataset": "cifar10"}
    assert build(outside).training.batch_size == 16
    assert build(outside).scheduler.keywords["T_max"] == 7
    assert meaning(outside).choices["data"] == "cifar10"


def test_fitcompress() -> None:
    section = {
        "enable_fitcompress": True,
        "optimize_pruning": True,
        "compression_goal": 0.007,
        "pruning_schedule": {"start": 0, "end": -2, "steps": 40},
    }
    built = build({"pruning_parameters": {"pruning_method": "fitcompress", "min_frac_bits": 2.0}, "fitcompress_parameters": section})
    assert built.fitcompress.enable_fitcompress and built.fitcompress.optimize_pruning and isinstance(built.pruning, NoPruning)
    assert (built.fitcompress.compression_goal, built.fitcompress.pruning_schedule.end) == (0.007, -2.0)
    other = meaning({"pruning_parameters": {"pruning_method": "dst"}, "fitcompress_parameters": section})
    assert other.values["fitcompress.optimize_pruning"] is False and any("pruning=none" in warning for warning in other.warnings)


def test_what_has_no_counterpart_is_warned_of() -> None:
    new = meaning(
        {"pruning_parameters": {"pruning_method": "dst", "colour": 1}, "training_parameters": {"label_smoothing": 0.1, "optimizer": "lion"}}
    )
    assert [word for word in ("colour", "label_smoothing", "lion") if not any(word in warning for warning in new.warnings)] == []
    assert any("nowhere" in warning for warning in meaning({"training_parameters": {"dataset": "nowhere"}}).warnings)


@pytest.mark.parametrize(
    ("old", "warning"),
    [
        (pruned(pruning_method="fitcompress", min_frac_bits=2.0), "min_frac_bits = 2.0 has no effect without dynamic_data_quantization"),
        (pruned(pruning_method="pdp", threshold_decay=1e-3), "threshold_decay = 0.001 has no effect: pdp trains no threshold"),
        (pruned(pruning_method="dst") | {"training_parameters": {"rewind": "post-ticket-search"}}, "rewind = 'post-ticket-search' has no effect"),
        ({"quantization_parameters": {"layer_specific": [{"a": 1}]}}, "layer_specific = [{'a': 1}] maps no layer to its settings"),
        ({"finetuning_parameters": {"model_name": "resnet18"}}, "model_name has no effect: unknown preset of a model 'resnet18'"),
        (pruned(pruning_method="cs") | {"training_parameters": {"pruning_first": False}}, "pruning_first = false does not fit CS"),
        (pruned(pruning_method="autosparse") | {"training_parameters": {"pruning_first": False}}, "pruning_first = false does not fit AutoSparse"),
    ],
)
def test_a_value_without_effect_is_dropped_and_told(old: Any, warning: str) -> None:
    new = convert(old)
    assert any(warning in told for told in new.warnings), new.warnings
    experiment = build(old)
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    pquant.compress(net, experiment.pruning, experiment.quantization, torch.zeros(2, 4))


def test_an_empty_list_of_rules_is_no_rule() -> None:
    assert not any("layer_specific" in told for told in convert({"quantization_parameters": {"layer_specific": []}}).warnings)


def test_the_name_of_a_model_chooses_its_preset() -> None:
    assert convert({"finetuning_parameters": {"model_name": "resnet20"}}).choices["model"] == "resnet20"
    assert with_model_preset(["finetuning.model_name=cnn"]) == ["finetuning.model_name=cnn", "model=cnn"]
    with pytest.raises(ConfigError, match="unknown preset of a model 'resnet': did you mean 'resnet20'"):
        with_model_preset(["finetuning.model_name=resnet"])


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"fitcompress"}))
def test_each_method_has_a_preset_with_the_specifications_defaults(name: str) -> None:
    with initialize_config_dir(config_dir=str(CONF)):
        experiment = build_experiment(compose("config", overrides=["tracker=none", f"pruning={name}_spec"]))
    assert experiment.pruning == METHODS[name]()


def test_a_search_becomes_a_study() -> None:
    search = {"numerical": {"learning_rate": ["1e-5", 1e-3, 0.2], "alpha": [0.1, 0.5, 0.1], "nothing": [1, 2, 1]}}
    search["categorical"] = {"lr_schedule": ["cosine", "multistep"]}
    hpo = {"experiment_name": "mine", "num_trials": 5, "sampler": {"type": "RandomSampler"}, "hyperparameter_search": search}
    new = meaning({"pruning_parameters": {"pruning_method": "dst"}, "hpo_parameters": hpo})
    assert new.study["finetuning"] == "random" and new.study["finetuning.num_trials"] == 5
    numerical = new.study["finetuning.hyperparameter_search.numerical"]
    assert numerical["optimizer.lr"] == [1e-5, 1e-3, 0.2] and numerical["pruning.alpha"] == [0.1, 0.5, 0.1]
    assert numerical["quantization.default_weight_fractional_bits"] is None
    assert new.study["finetuning.hyperparameter_search.categorical"] == {"scheduler": ["cosine", "multistep"]}
    assert any("nothing" in warning for warning in new.warnings)
    line = command(new, overrides(new))
    assert shlex.split(line)[:3] == ["python", "run.py", "-m"]
    with initialize_config_dir(config_dir=str(CONF)):
        composed = compose("config", overrides=shlex.split(line)[3:])
    assert composed.finetuning.hyperparameter_search.numerical["pruning.alpha"] == [0.1, 0.5, 0.1]
    assert meaning({"hpo_parameters": {"hyperparameter_search": {"numerical": {}}}}).study == {}


@pytest.mark.parametrize(
    ("old", "part"),
    [
        ([1], "not a PQuantML configuration"),
        (None, "not a PQuantML configuration"),
        ({"model": 3}, "not a PQuantML configuration"),
        (pruned(pruning_method="wnda"), "did you mean 'wanda'"),
        (pruned(pruning_method="wanda", sparsity=1.7), "Wanda.sparsity must be in [0, 1], got 1.7"),
        ({"training_parameters": {"rewind": "post-training-stage", "save_weights_epoch": 2}}, "Training.rewind"),
        ({"pruning_parameters": None, "training_parameters": 5}, "training_parameters must be a mapping of names to values, got 5"),
        ({"quantization_parameters": {"layer_specific": {"a": 3}}}, "quantization_parameters.layer_specific.a must be a mapping"),
        ({"quantization_parameters": {"layer_specific": {"a": {"weight": 3}}}}, "layer_specific.a.weight must be a mapping"),
    ],
)
def test_what_cannot_work_is_said(old: Any, part: str) -> None:
    from pquant.config import CLEAR_ERRORS, explain

    with pytest.raises(CLEAR_ERRORS) as caught:
        convert(old)
    assert part in explain(caught.value)


def test_a_file_with_objects_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("pruning_parameters: !!python/object/apply:os.system ['true']")
    with pytest.raises(ConfigError, match="no YAML file of plain values"):
        read(tmp_path / "bad.yaml")


def test_the_command_and_the_file_run(tmp_path: Path) -> None:
    old = tmp_path / "old.yaml"
    old.write_text(yaml.safe_dump(pruned(pruning_method="mdmm", target_sparsity=0.7, nonsense=1) | {"training_parameters": {"rounds": 2}}))

    def converted(*arguments: str) -> str:
        done = subprocess.run([sys.executable, "-m", "pquant.convert_config", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and "nonsense" in done.stderr, done.stderr
        return done.stdout.strip()

    composed = []
    for line in (converted(str(old)), converted(str(old), "--yaml", str(tmp_path / "new.yaml"))):
        words = [sys.executable, *shlex.split(line)[1:], "--cfg", "job", "tracker=none"]
        composed.append(yaml.safe_load(subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True).stdout))
    assert composed[0] == composed[1]
    assert composed[0]["pruning"]["target_sparsity"] == 0.7 and composed[0]["training"]["rounds"] == 2
    assert yaml.safe_load(as_yaml(meaning(read(old))))["pruning"]["target_sparsity"] == 0.7
