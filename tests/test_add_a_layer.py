"""The worked example of docs/add_a_layer.md, as it stands there."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import pquant
from pquant.layers.replacements import REPLACEMENTS
from pquant.pruning import Magnitude

from .formats import EIGHT_BITS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "add_a_layer.md").read_text()
SHORT = "training.pretraining_epochs=1 training.epochs=2 training.fine_tuning_epochs=1 tracker=none progress=plain"
EIGHTHS = replace(EIGHT_BITS, default_weight_fractional_bits=3)


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert found
    return found.group(1)


@pytest.fixture
def layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "my_layers.py").write_text(block("python"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_layers", raising=False)
    known = dict(REPLACEMENTS)
    import my_layers

    yield my_layers
    REPLACEMENTS.clear()
    REPLACEMENTS.update(known)


def test_the_lines_of_the_page_run(tmp_path: Path) -> None:
    (tmp_path / "my_layers.py").write_text(block("python"))
    script = block("bash").replace("python run.py", f"{sys.executable} {ROOT / 'run.py'}").strip()
    done = subprocess.run(
        ["bash", "-c", f"set -e\n{script} {SHORT} pruning.sparsity=0.5 hydra.run.dir={tmp_path / 'run'}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stays float" not in done.stdout + done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["mask_sparsity"] == pytest.approx(0.5, abs=0.01)


def test_the_layer_is_converted_and_finalized_without_a_change(layers: Any) -> None:
    x = torch.randn(5, 64)
    net = layers.Net((64,), 10)
    assert torch.equal(pquant.compress(net, None, None, x)(x), net(x))
    model = pquant.compress(net, Magnitude(sparsity=0.5), EIGHTHS, x)
    assert isinstance(model[0], layers.PQGroupedLinear)
    pquant.set_stage(model, pquant.Stage.TRAIN, pquant.Horizon(epochs=1, steps_per_epoch=1))
    pquant.on_epoch_end(model)
    pquant.set_stage(model, pquant.Stage.FINETUNE)
    expected = model.eval()(x)
    final = pquant.finalize(model)
    assert torch.equal(final(x), expected)
    assert (final[0].weight == 0).float().mean() > 0.3
    assert torch.equal(final[0].weight * 8, (final[0].weight * 8).round())


def test_its_ebops_are_bits_times_bits_of_the_weights(layers: Any) -> None:
    x = torch.randn(5, 8)
    layer = layers.GroupedLinear(2, 4, 3)
    torch.nn.init.constant_(layer.weight, 0.625)  # 0.101 in binary: 3 bits
    assert pquant.ebops(pquant.compress(layer, None, EIGHTHS, x)) == 2 * 4 * 3 * 3 * 8, "weights of 3 bits times data of 8, no bias"
