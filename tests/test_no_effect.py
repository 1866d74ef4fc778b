"""Settings that change nothing, and training that leaves nothing, are said."""

import json
import logging
from pathlib import Path

import pytest
import torch
from torch import nn

import pquant
from pquant.errors import ConfigError
from pquant.layers.queries import ebops_budget
from pquant.quantization import Quantization
from pquant.resume import Run
from pquant.training import Training

from .test_config import build

SMALL = ["training.pretraining_epochs=0", "training.epochs=1", "training.fine_tuning_epochs=0", "progress=quiet", "model.sizes=[null,8,null]"]


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"hgq_beta": 1e-5}, ["hgq_beta = 1e-05 has no effect without quantization.use_hgq=true"]),
        ({"hgq_gamma": 1e-5, "hgq_lr": 0.1}, ["hgq_gamma", "hgq_lr"]),
        ({"hgq_beta_schedule": [[0, 1e-6]]}, ["hgq_beta_schedule"]),
        ({"use_hgq": True, "enable_quantization": False}, ["use_hgq has no effect, as quantization.enable_quantization is false"]),
        ({"use_hgq": True, "hgq_beta": 1e-5, "hgq_beta_schedule": [[0, 1e-6]]}, ["hgq_beta = 1e-05 has no effect beside hgq_beta_schedule"]),
        (
            {"use_hgq": True, "enable_quantization": False, "target_ebops": 500},
            ["target_ebops = 500 has no effect without enable_quantization=true", "use_hgq has no effect"],
        ),
        ({"use_hgq": True, "hgq_beta": 1e-5, "target_ebops": 500}, []),
        ({"use_hgq": True, "hgq_beta": 1e-5}, []),
        ({"use_hgq": True, "enable_quantization": False, "layer_specific": {"a": {"enable_quantization": True}}}, []),
        ({}, []),
    ],
)
def test_quantization_says_what_has_no_effect(fields: dict, parts: list[str]) -> None:
    found = Quantization(**fields).warnings()
    assert len(found) == len(parts) and all(part in line for part, line in zip(parts, found, strict=True))


def test_what_begins_with_the_train_stage_has_no_effect_without_it() -> None:
    section = Quantization(use_hgq=True, hgq_gamma=1e-7, hgq_lr=0.1, target_ebops=500)
    assert [line.split()[0] for line in section.warnings(trains=False)] == ["quantization.hgq_gamma", "quantization.target_ebops"]
    assert "target_ebops = 500 has no effect without training.epochs" in section.warnings(trains=False)[1]
    assert not section.warnings()


@pytest.mark.parametrize("enabled", [False, True])
def test_a_target_without_trained_bits_is_told(enabled: bool, caplog: pytest.LogCaptureFixture) -> None:
    section = Quantization(use_hgq=True, target_ebops=500, layer_specific={"0": {"enable_quantization": enabled}}, enable_quantization=False)
    net = pquant.compress(nn.Sequential(nn.Linear(4, 4)), None, section, torch.zeros(2, 4))
    assert ("no layer has trained bits" in caplog.text) is not enabled
    assert (ebops_budget(net) is None) is not enabled


def test_training_says_which_key_is_misspelt() -> None:
    assert Training(extra={"epohcs": 3, "warmup": 2}).warnings() == [
        "training.epohcs is no setting of this package and has no effect: did you mean 'epochs'?"
    ]


@pytest.mark.parametrize(
    ("rules", "line"),
    [
        ({"1": {"weight": {"f": 3}}}, "layer '1' has only input, output to quantize"),
        ({"2": {"bias": {"f": 3}}}, "layer '2' has only weight, input, output to quantize"),
        ({"*": {"weight": {"f": 3}}}, None),
        ({"1": {"output": {"f": 3}, "enable_quantization": True}}, None),
    ],
)
def test_a_rule_for_a_tensor_that_a_layer_has_not_is_refused(rules: dict, line: str | None) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))
    if line is None:
        pquant.compress(model, None, Quantization(layer_specific=rules))
    else:
        with pytest.raises(ConfigError, match=line):
            pquant.compress(model, None, Quantization(layer_specific=rules))


def test_a_format_without_bits_is_told(caplog: pytest.LogCaptureFixture) -> None:
    fields = {"default_data_integer_bits": 3, "default_weight_keep_negatives": True, "default_weight_fractional_bits": 7}
    pquant.compress(nn.Linear(4, 4), None, Quantization(**fields, default_weight_integer_bits=-9))
    assert "the format k=1 i=-9 f=7 has no bits, so that all values are 0: weight, bias" in caplog.text
    caplog.clear()
    pquant.compress(nn.Linear(4, 4), None, Quantization(**fields))
    assert "has no bits" not in caplog.text


@pytest.mark.parametrize(("bits", "constant"), [(-9, True), (0, False)])
def test_a_model_that_ends_with_one_output_for_all_inputs_is_told(
    bits: int, constant: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.set_num_threads(1)
    experiment = build(*SMALL, f"quantization.default_weight_integer_bits={bits}", "quantization.hgq_beta=1e-5", "+training.epohcs=3")
    with caplog.at_level(logging.WARNING):
        experiment.run(Run(tmp_path, {}, ""))
    assert json.loads((tmp_path / "summary.json").read_text())["constant_output"] is constant
    assert ("gives the same output for every input" in caplog.text) is constant
    assert "hgq_beta = 1e-05 has no effect" in caplog.text and "did you mean 'epochs'" in caplog.text
