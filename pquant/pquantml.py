"""Conversion of each section of a PQuantML configuration; the names are those of ``pquant-ml`` 0.1.0 and of older files.

A field that the file leaves out gets the default of PQuantML, not that of a preset of this package.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from pquant.errors import ConfigError, unknown
from pquant.fitcompress import FITCompress
from pquant.installation import CONF
from pquant.own_classes import model_preset
from pquant.pruning import CS, DST, MDMM, PDP, ActivationPruning, AutoSparse, NoPruning, PruningMethod, Wanda
from pquant.quantization import Quantization
from pquant.training import Training

SECTIONS = (
    "pruning_parameters",
    "quantization_parameters",
    "training_parameters",
    "fitcompress_parameters",
    "hpo_parameters",
    "finetuning_parameters",
)
METHODS: dict[str, type[PruningMethod]] = {
    "cs": CS,
    "dst": DST,
    "pdp": PDP,
    "wanda": Wanda,
    "autosparse": AutoSparse,
    "activation_pruning": ActivationPruning,
    "mdmm": MDMM,
    "fitcompress": NoPruning,
}
DEFAULTS = {
    "default_weight_keep_negatives": True,
    "default_weight_fractional_bits": 7,
    "default_data_fractional_bits": 7,
    "quantize_output": False,
    "hgq_gamma": 3e-4,
    "hgq_beta": 1e-5,
}
"""PQuantML's quantization defaults where its code (0.1.0) differs from the specification, which the constructor here follows."""
RENAMED = {
    "use_high_granularity_quantization": ["use_hgq"],
    "granularity": ["granularity", "data_granularity"],
    "default_integer_bits": ["default_weight_integer_bits", "default_data_integer_bits"],
    "default_fractional_bits": ["default_weight_fractional_bits", "default_data_fractional_bits"],
}
BITS = {"keep_negatives": "k", "integer_bits": "i", "fractional_bits": "f", "quantize": "enable"}
OPTIMIZER = {
    "lr": "lr",
    "learning_rate": "lr",
    "l2_decay": "weight_decay",
    "momentum": "momentum",
    "lambda_p": "weight_decay",
    "p_norm": "p_norm",
}
P_NORM = {"lambda_p": 1e-2, "p_norm": 1.0}
"""Fields that only optimizers with p-norm weight decay have, with PQuantML's defaults."""
SCHEDULES = {"cosine": {"cosine_tmax": "T_max"}, "multistep": {"milestones": "milestones", "gamma": "gamma"}}
LENGTHS = {"epochs", "fine_tuning_epochs", "pretraining_epochs", "rewind", "rounds", "save_weights_epoch"}
"""Fields of the training section that PQuantML also has."""
SILENT = {"hgq_heterogeneous", "plot_frequency", "pruning_method", "model_name"}
"""Fields that no result depends on, or that choose a preset."""
REWINDS = get_args(get_type_hints(Training)["rewind"])


@dataclass
class Converted:
    """Choices of groups, values of fields by dotted name, the study's values, and warnings about settings without a counterpart."""

    choices: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    study: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def meaning(old: Any) -> Converted:
    """Return the settings of this package for a PQuantML configuration.

    Raises:
        ConfigError: this is not a PQuantML configuration, or the pruning method is unknown.
    """
    if not isinstance(old, Mapping) or not any(section in old for section in SECTIONS):
        raise ConfigError(f"this is not a PQuantML configuration: expected at least one of {', '.join(SECTIONS)}")
    new = Converted()
    parts = {section: dict(_mapping(section, old.get(section) or {})) for section in SECTIONS}
    training = {key: value for key, value in old.items() if key not in SECTIONS} | parts["training_parameters"]
    floor = parts["pruning_parameters"].pop("min_frac_bits", None)
    _pruning(parts["pruning_parameters"], training, new)
    _quantization(parts["quantization_parameters"], training, floor, new)
    _fitcompress(parts["fitcompress_parameters"], new)
    _training(training, new)
    study = parts["hpo_parameters"] | parts["finetuning_parameters"]
    _model(study.pop("model_name", None) or old.get("model_name"), new)
    _study(study, new)
    return new


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    """Return the value of a section or rule; ConfigError if it is not a mapping."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} must be a mapping of names to values, got {value!r}")
    return value


def _pruning(section: dict[str, Any], training: dict[str, Any], new: Converted) -> None:
    name = section.get("pruning_method")
    if name is None:
        new.choices["pruning"] = "none"
        return
    if name not in METHODS:
        raise ConfigError(f"pruning_parameters.pruning_method: {unknown('method', str(name), METHODS)}")
    method = METHODS[name]
    new.choices["pruning"] = "none" if method is NoPruning else name
    if "threshold_decay" in training:
        section.setdefault("threshold_decay", training.pop("threshold_decay"))
    if section.get("threshold_decay") and not method.decays_thresholds:
        new.warnings.append(f"threshold_decay = {section.pop('threshold_decay')} has no effect: {name} trains no threshold")
    section["disable_pruning_for_layers"] = [layer for layer in section.get("disable_pruning_for_layers") or [] if layer]
    if section.get("N") is not None and section.get("M") is not None:
        section["N"] = section["M"] - section["N"]
        new.warnings.append(f"pruning_parameters.N counts pruned weights, pruning.N remaining weights: {section['N']} of {section['M']}")
    _take("pruning", method, section, {}, new)


def _quantization(section: dict[str, Any], training: dict[str, Any], floor: Any, new: Converted) -> None:
    for old, names in RENAMED.items():
        if old in section:
            value = section.pop(old)
            section = {name: value for name in names} | section
    if section.pop("use_symmetric_quantization", False):
        section |= {"overflow_mode_parameters": "SAT_SYM", "overflow_mode_data": "SAT_SYM"}
    _ranges(section, floor, new)
    section["pruning_first"] = training.pop("pruning_first", False)
    method = METHODS.get(new.choices["pruning"], NoPruning)
    if not section["pruning_first"] and method.rescales and section.get("enable_quantization", True):
        section["pruning_first"] = True
        new.warnings.append(f"pruning_first = false does not fit {method.__name__}, which rescales the weights it keeps: it is true here")
    given = section.get("layer_specific") or {}
    if not isinstance(given, Mapping):
        new.warnings.append(f"quantization_parameters.layer_specific = {given} maps no layer to its settings: left out")
        given = {}
    rules = {name: dict(_rule(name, rule, new)) for name, rule in given.items()}
    section["layer_specific"] = {name: rule for name, rule in rules.items() if rule}
    hgq = bool(section.get("use_hgq"))
    new.choices["quantization"] = "hgq" if hgq else "fixed" if section.get("enable_quantization", True) else "none"
    _take("quantization", Quantization, section, DEFAULTS, new)
    if not hgq:
        new.values = {name: value for name, value in new.values.items() if ".hgq_" not in name}
    elif new.values["quantization.hgq_lr"] is None:
        new.warnings.append("bit widths have the learning rate of the weights, as in PQuantML; quantization.hgq_lr=0.01 trains them faster")


def _ranges(section: dict[str, Any], floor: Any, new: Converted) -> None:
    """Convert settings that depend on ranges of data: dynamic data, and ``floor``, the fewest fractional bits of data in its FITCompress."""
    hgq, dynamic = bool(section.get("use_hgq")), bool(section.get("dynamic_data_quantization"))
    if dynamic and hgq:
        new.warnings.append("dynamic_data_quantization has no effect with HGQ, which trains the bits of data")
    elif dynamic:
        section["min_frac_bits"] = 0
        new.warnings.append("dynamic_data_quantization ends at the range of the training data, in PQuantML at that of the last batch")
    section["dynamic_data_quantization"] = dynamic and not hgq
    if floor is not None and (dynamic or hgq):
        section["min_frac_bits"] = int(floor)
    elif floor is not None:
        new.warnings.append(f"min_frac_bits = {floor} has no effect without dynamic_data_quantization: FITCompress does not change the bits of data")


def _rule(layer: str, rule: Mapping[str, Any], new: Converted) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (tensor, its settings) of one layer's rule; bits without a tensor hold for weight and bias."""
    place = f"quantization_parameters.layer_specific.{layer}"
    rule = _mapping(place, rule)
    tensors = {tensor: _mapping(f"{place}.{tensor}", rule[tensor]) for tensor in ("weight", "bias", "input", "output") if tensor in rule}
    bare = {key: value for key, value in rule.items() if key in BITS}
    for key in rule.keys() - tensors.keys() - bare.keys():
        new.warnings.append(f"{place}.{key} has no counterpart: left out")
    for tensor, bits in ({"weight": bare, "bias": bare} if bare else {} | tensors).items():
        kinds = {"k": bool, "enable": bool, "i": int, "f": int}
        yield tensor, {BITS[key]: kinds[BITS[key]](value) for key, value in bits.items() if key in BITS}


def _fitcompress(section: dict[str, Any], new: Converted) -> None:
    if section.get("enable_fitcompress"):
        new.choices["fitcompress"] = "on"
        if new.choices["pruning"] != "none" and section.get("optimize_pruning"):
            section["optimize_pruning"] = False
            new.warnings.append("FITCompress makes masks only with pruning=none: optimize_pruning is switched off")
        _take("fitcompress", FITCompress, section, {}, new)


def _training(section: dict[str, Any], new: Converted) -> None:
    _optimization(section, new)
    data = section.pop("dataset", None)
    if data is not None and (CONF / "data" / f"{data}.yaml").exists():
        new.choices["data"] = str(data)
    elif data is not None:
        new.warnings.append(f"dataset '{data}' has no preset: use data=table data.path=<file> data.target=<column>, or a class by data._target_")
    if section.get("rewind", "never") not in REWINDS:
        values = ", ".join(REWINDS)
        new.warnings.append(f"training_parameters.rewind = '{section.pop('rewind')}' has no effect in PQuantML 0.1.0 either: its values are {values}")
    if not section.get("label_smoothing"):
        section.pop("label_smoothing", None)
    _take("training", Training, section, {}, new)
    if new.values["training.rewind"] == "never":
        new.values["training.save_weights_epoch"] = -1


def _model(name: str | None, new: Converted) -> None:
    """Choose the preset for a model's name; without a preset the network is given in code, as in PQuantML."""
    if name is None:
        return
    try:
        new.choices["model"] = model_preset(name)
    except ConfigError as error:
        new.warnings.append(f"model_name has no effect: {error}")


def _optimization(section: dict[str, Any], new: Converted) -> None:
    """Convert the fields of the optimizer and its schedule, and remove them from the section."""
    schedule, optimizer = str(section.pop("lr_schedule", "")), str(section.pop("optimizer", "")).lower()
    if (CONF / "optimizer" / f"{optimizer}.yaml").exists():
        new.choices["optimizer"] = optimizer
    elif optimizer:
        new.warnings.append(f"training_parameters.optimizer '{optimizer}' has no preset: any of torch.optim by optimizer._target_")
    if p_norm := optimizer in ("padam", "psgd"):
        section.update(P_NORM | section)
    without = ({"l2_decay"} if p_norm else set(P_NORM)) | (set() if optimizer in ("sgd", "psgd") else {"momentum"})
    targets = {key: f"optimizer.{name}" for key, name in OPTIMIZER.items() if key not in without}
    if schedule in SCHEDULES:
        new.choices["scheduler"] = schedule
        targets |= {key: f"scheduler.{name}" for key, name in SCHEDULES[schedule].items()}
    given = {key: section.pop(key) for key in [*OPTIMIZER, *(key for keys in SCHEDULES.values() for key in keys)] if key in section}
    new.values |= {targets[key]: _number(value) for key, value in given.items() if key in targets}
    if unused := [key for key in given if key not in targets]:
        new.warnings.append(f"training_parameters: {', '.join(unused)} has no effect with optimizer '{optimizer}' and lr_schedule '{schedule}'")


def _study(section: dict[str, Any], new: Converted) -> None:
    """Turn a search over bare names into a study over fields; PQuantML looks up a name in its sections in order."""
    search = section.get("hyperparameter_search") or {}
    spaces = {kind: dict(_space(search.get(kind) or {}, new)) for kind in ("numerical", "categorical")}
    if not any(spaces.values()):
        return
    sampler = section.get("sampler") or {}
    kind = sampler.get("type", "TPESampler")
    presets = {_yaml(file).get("sampler", {}).get("type"): file.stem for file in sorted((CONF / "finetuning").glob("*.yaml"))}
    new.study["finetuning"] = presets.get(kind, "random")
    if kind not in presets:
        new.study["finetuning.sampler.type"] = kind
    own = _yaml(CONF / "study.yaml")["finetuning"]["hyperparameter_search"]["numerical"]
    spaces["numerical"] = dict.fromkeys(own) | spaces["numerical"]  # null removes the fields that every study of this package searches by default
    new.study |= {f"finetuning.hyperparameter_search.{kind}": space for kind, space in spaces.items() if space}
    new.study |= {f"finetuning.{key}": section[key] for key in ("experiment_name", "num_trials") if key in section}
    if sampler.get("params"):
        new.study["finetuning.sampler.params"] = sampler["params"]


def _space(names: Mapping[str, Any], new: Converted) -> Iterator[tuple[str, Any]]:
    for name, values in names.items():
        if name == "lr_schedule":
            yield "scheduler", values
            continue
        fields = [f"optimizer.{OPTIMIZER[name]}"] if name in OPTIMIZER else _named(name, new)
        if fields:
            yield fields[0], [_number(value) for value in values]
        if len(fields) != 1:
            kept = f"only {fields[0]} is searched" if fields else "left out"
            new.warnings.append(f"hyperparameter_search.{name} stands for {' and '.join(fields) or 'no field here'}: {kept}")


def _named(name: str, new: Converted) -> list[str]:
    """Return the fields that a bare name stands for, from the first section that has one."""
    for group, cls in (("pruning", METHODS.get(new.choices["pruning"], NoPruning)), ("quantization", Quantization), ("training", Training)):
        known = {spec.name for spec in dataclasses.fields(cls)}
        found = [f"{group}.{field}" for field in RENAMED.get(name, [name]) if field in known]
        if found:
            return found
    return []


def _take(group: str, cls: type[Any], section: Mapping[str, Any], defaults: Mapping[str, Any], new: Converted) -> None:
    """Set every field of ``cls`` in ``new``: the value in the section, else the default; warn of keys that are no field."""
    known = {spec.name: spec for spec in dataclasses.fields(cls) if spec.name not in SILENT}
    for name, spec in known.items():
        plain = spec.default_factory() if spec.default_factory is not dataclasses.MISSING else spec.default
        plain = dataclasses.asdict(plain) if dataclasses.is_dataclass(plain) else plain  # type: ignore[arg-type]
        if name in section:
            new.values[f"{group}.{name}"] = _like(plain, section[name])
        elif group != "training" or name in LENGTHS:
            new.values[f"{group}.{name}"] = defaults.get(name, plain)
    new.warnings += [f"{group}_parameters.{key} has no counterpart: left out" for key in section if key not in known and key not in SILENT]


def _like(default: Any, value: Any) -> Any:
    """Convert a value to the type of its field: PQuantML writes 7. for 7 bits and 1. for true, and YAML reads 1e-5 as a string."""
    value = _number(value)
    if isinstance(default, bool) and value in (0, 1):
        return bool(value)
    if isinstance(default, dict) and isinstance(value, Mapping):
        return {key: _like(default.get(key), part) for key, part in value.items()}
    if isinstance(default, list) and isinstance(value, list) and default:
        return [_like(default[0], part) for part in value]
    if isinstance(default, int) and isinstance(value, float) and value.is_integer():
        return int(value)
    return float(value) if isinstance(default, float) and isinstance(value, int) else value


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _yaml(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text())
