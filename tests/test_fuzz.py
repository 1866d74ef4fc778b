"""Random settings, drawn from the types and ranges of the fields themselves: what is accepted trains, what is refused is named in one line."""

import dataclasses
import random
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import torch
from torch.utils.data import TensorDataset

from pquant.config import CONFIGURATION_ERRORS, explain
from pquant.data import Splits
from pquant.errors import ConfigError
from pquant.experiment import Experiment
from pquant.layers import compress
from pquant.settings import Settings

from . import test_run
from .test_config import NEEDED, OPTIONS, build

GROUPS = ("pruning", "quantization", "training", "fitcompress", "distillation", "data", "export", "finetuning", "tracker")
ELSEWHERE = ("device", "compile", "threads", "batch_size", "precision")
"""Fields of training that depend on the machine, or that change nothing in a single step."""

SECTIONS: dict[str, Settings] = {
    option: section
    for option in OPTIONS
    if option.split("=")[0] in GROUPS
    for section in [getattr(build(option, *NEEDED.get(option, [])), option.split("=")[0])]
    if isinstance(section, Settings)
}
TRAINED = [option for option in SECTIONS if option.split("=")[0] in ("pruning", "quantization", "training")]


class Enough(Exception):  # noqa: N818
    pass


def kinds(section: Settings, field: str) -> tuple[Any, ...]:
    hint = get_type_hints(type(section))[field]
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def right(kind: Any, bounds: Any, draw: random.Random) -> Any:
    """Return a value of ``kind`` within ``bounds``; None for kinds that are not drawn."""
    if get_origin(kind) is Literal:
        return draw.choice(get_args(kind))
    if kind is bool:
        return draw.random() < 0.5
    low, high = bounds.get("ge", bounds.get("gt", -5)), bounds.get("le", bounds.get("lt", 8))
    if kind is int:
        return draw.randint(low + ("gt" in bounds), max(high - ("lt" in bounds), low))
    return low + (high - low) * draw.uniform(0.01, 0.99) if kind is float else None


def wrong(section: Settings, field: dataclasses.Field[Any]) -> list[str]:
    """Return texts that are no value of ``field``: of another type, beyond each bound, and not finite."""
    allowed, bounds = kinds(section, field.name), field.metadata
    simple = {int, float, bool} & set(allowed) or {kind for kind in allowed if get_origin(kind) is Literal}
    found = ["[[]]", "wrong_word"] if simple else []
    if str in allowed:
        return ["{a: 1}"]
    if float in allowed or int in allowed:
        below = bounds.get("ge", bounds.get("gt"))
        above = bounds.get("le", bounds.get("lt"))
        found += [str(below - 1)] if below is not None else []
        found += [str(above + 1)] if above is not None else []
        found += [str(bounds[edge]) for edge in ("gt", "lt") if edge in bounds]
        found += ["nan", "inf"] if float in allowed else ["1.5"]
    if NoneType not in allowed and simple:
        found.append("null")
    if bool in allowed:
        found += ['"False"', "'true'", "yes", '"1"', "2"]
    return found


BY_CLASS = {type(section): (option, section) for option, section in SECTIONS.items()}
WRONG = [
    (option, field.name, text) for option, section in BY_CLASS.values() for field in dataclasses.fields(section) for text in wrong(section, field)
]


def text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def drawn(seed: int) -> list[str]:
    """Return a choice for each group that training hears of, and up to three fields of each that its class accepts."""
    draw = random.Random(seed)
    overrides = ["optimizer=" + draw.choice(["adam", "adamw", "sgd"]), "scheduler=" + draw.choice(["cosine", "constant", "multistep"])]
    for group in ("pruning", "quantization", "training"):
        option = draw.choice([option for option in TRAINED if option.startswith(group)])
        section, changes = SECTIONS[option], {}
        fields = [field for field in dataclasses.fields(section) if group != "training" or field.name not in ELSEWHERE]
        for field in draw.sample(fields, 3):
            value = right(draw.choice(kinds(section, field.name)), field.metadata, draw)
            try:
                accepted = dataclasses.replace(section, **changes, **{field.name: value})  # type: ignore[arg-type]
            except ConfigError:
                continue
            if value is not None and getattr(accepted, field.name) == value:
                changes[field.name] = value
        overrides += [option, *(f"{group}.{name}={text(value)}" for name, value in changes.items())]
    return overrides


def splits() -> Splits:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 64, generator=generator), torch.randint(0, 10, (64,), generator=generator)
    return Splits(TensorDataset(x, y), TensorDataset(x, y), TensorDataset(x, y), num_classes=10)


def step(experiment: Experiment) -> None:
    """Make one training step, or none where the settings ask for no epoch."""

    def enough() -> None:
        raise Enough

    data = splits()
    model = compress(experiment.build_model(data), experiment.fitcompress.masks(experiment.pruning), experiment.quantization, data.train[:4][0])
    trainer = experiment.trainer(model, data)
    if trainer.plan:
        with pytest.raises(Enough):
            trainer.fit(lambda row: None, after_step=enough)
    assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())


def accepted(seeds: range) -> int:
    """Return how many of the settings were run; the rest must be refused for how they go together."""
    ran = 0
    for seed in seeds:
        overrides = drawn(seed)
        try:
            step(build("model.sizes=[null,4,null]", "training.pretraining_epochs=0", *overrides))
            ran += 1
        except CONFIGURATION_ERRORS as error:
            assert "\n" not in explain(error), overrides
        except Exception as error:
            raise AssertionError(f"{overrides}: {type(error).__name__}: {error}") from error
    return ran


def refused(cases: list[tuple[str, str, str]]) -> None:
    for option, field, bad in cases:
        override = f"{option.split('=')[0]}.{field}={bad}"
        with pytest.raises(CONFIGURATION_ERRORS) as caught:
            build(option, *NEEDED.get(option, []), override)
            raise AssertionError(f"{option} {override} was taken")
        line = explain(caught.value)
        assert "\n" not in line and field in line, (override, line)


def test_there_are_enough_wrong_values() -> None:
    assert len(WRONG) >= 300 and {option.split("=")[0] for option, _, _ in WRONG} == set(GROUPS)


def test_a_sample_of_random_settings_trains() -> None:
    assert accepted(range(6)) >= 5


def test_a_sample_of_wrong_values_is_refused_by_name() -> None:
    refused(random.Random(0).sample(WRONG, 25))


@pytest.mark.slow
def test_random_settings_train() -> None:
    assert accepted(range(6, 400)) >= 315


@pytest.mark.slow
def test_every_wrong_value_of_every_field_is_refused_by_name() -> None:
    refused(WRONG)


@pytest.mark.slow
@pytest.mark.parametrize(("option", "field", "bad"), random.Random(1).sample(WRONG, 20))
def test_a_wrong_value_ends_the_command_in_one_line(option: str, field: str, bad: str, tmp_path: Path) -> None:
    group = option.split("=")[0]
    study = ["-m"] if group == "finetuning" else []
    assert field in test_run.refused(tmp_path / "run", *study, option, *NEEDED.get(option, []), f"{group}.{field}={bad}")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("+data.tset_fraction=0.1", "data: Digits.__init__() got an unexpected keyword argument 'tset_fraction'"),
        ("+pruning.foo=1", "pruning: DST.__init__() got an unexpected keyword argument 'foo'"),
        ("+model.foo=1", "model: unknown argument of MLP 'foo'; valid: sizes, "),
        ("+optimizer.lrr=1", "optimizer: unknown argument of Adam 'lrr': did you mean 'lr'? valid: "),
        ("+scheduler.foo=2", "scheduler: unknown argument of CosineAnnealingLR 'foo'; valid: "),
        ("optimizer.lr=-1", "optimizer: Invalid learning rate: -1"),
    ],
)
def test_what_a_section_does_not_take_is_refused_before_training(override: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        step(build(override))
    assert explain(caught.value).startswith(line)
