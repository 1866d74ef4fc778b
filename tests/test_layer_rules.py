"""The bits of every layer, written out."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import pquant
from pquant.layer_rules import layer_rules, main
from pquant.metrics import layer_table
from pquant.models import CNN
from pquant.quantization import Quantization

ROOT = Path(__file__).parents[1]


def test_the_rules_of_all_layers_give_the_same_model_and_can_be_edited(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "run.py")]
    job = ["model=mlp", "quantization=hgq", "quantization.default_weight_fractional_bits=5"]
    printed = subprocess.run([*command, "layers", *job], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    rules = yaml.safe_load(printed)
    assert rules["defaults"] == ["hgq", "_self_"] and rules["layer_specific"]["layers.0"]["weight"]["f"] == 5
    rules["layer_specific"]["layers.2"]["weight"]["f"] = 3
    (tmp_path / "conf" / "quantization").mkdir(parents=True)
    (tmp_path / "conf" / "quantization" / "mine.yaml").write_text(yaml.safe_dump(rules))
    shown = subprocess.run(
        [*command, "model=mlp", "quantization=mine", "dry_run=true", "tracker=none", "hydra.run.dir=run"],
        cwd=tmp_path, capture_output=True, text=True, check=True, env=os.environ | {"COLUMNS": "200"},
    ).stdout  # fmt: skip
    bits = [line.split("│")[5].strip() for line in shown.splitlines() if " PQDense" in line]
    assert bits[0] != bits[1], shown


@pytest.mark.parametrize("changes", [{}, {"layer_specific": {"*": {"input": {"enable": False}}}}, {"use_hgq": True, "granularity": "per_channel"}])
def test_a_model_compressed_with_the_rules_is_the_same(changes: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"default_data_integer_bits": 3, "default_data_fractional_bits": 4, "default_weight_fractional_bits": 6} | changes
    x = torch.zeros(2, 1, 8, 8)

    def compressed(quantization: Quantization) -> torch.nn.Module:
        torch.manual_seed(0)
        return pquant.compress(CNN((1, 8, 8), 10), None, quantization, x)

    before = compressed(Quantization(**settings))
    rules = layer_rules(before, Quantization(**settings))
    after = compressed(Quantization(**({"use_hgq": False} | settings | {"layer_specific": rules})))
    assert layer_table(before) == layer_table(after) and len(rules) == len(layer_table(before)) > 4


def test_a_wrong_override_is_an_error_before_anything_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Exception, match="unknown|wnda|Could not"):
        main(["pruning=wnda"])
    assert not capsys.readouterr().out
