"""A regression on targets far from 0, whose scale only the data knows."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import pquant
from pquant.export import load_weights
from pquant.training.task import Classification, Regression, task_for

from ..data.test_splitting import numbered, real
from ..test_config import build

SHORT = ["training.pretraining_epochs=1", "training.epochs=2", "training.fine_tuning_epochs=0", "training.batch_size=64", "optimizer.lr=0.01"]


def test_large_targets_are_learned_at_8_bits_and_judged_in_their_own_units(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=2000)
    pd.DataFrame({"x": x, "y": 1e4 * x + 5e5}).to_csv(tmp_path / "a.csv", index=False)
    options = ["data=table", f"data.path={tmp_path / 'a.csv'}", "quantization=fixed", "pruning=none", "model.sizes=[null,16,null]", "progress=quiet"]
    experiment = build(*options, *SHORT, "training.baseline=true")
    summary = experiment.run(pquant.experiment.Run(tmp_path / "run", {}, ""))

    splits, raw = (build(*options, f"data.scale_target={scaled}").data.load(experiment.seed) for scaled in ("true", "false"))
    units = {name: summary[name] for name in ("target_scale", "target_offset")}
    assert units == splits.units == {name: json.loads((tmp_path / "run" / "model.json").read_text())[name] for name in units}
    assert units == pytest.approx({"target_scale": 1e4, "target_offset": 5e5}, rel=0.05)

    model = pquant.finalize(pquant.compress(experiment.build_model(splits), experiment.pruning, experiment.quantization, splits.train[:4][0]))
    load_weights(model.eval(), tmp_path / "run" / "model.safetensors")
    for part, prefix in ((raw.test, "test"), (raw.validation, "val")):
        inputs, wanted = part.tensors
        with torch.no_grad():
            error = model(inputs).double() * units["target_scale"] + units["target_offset"] - wanted
        rmse = float(error.square().mean().sqrt())
        assert summary[f"{prefix}/rmse"] == pytest.approx(rmse, rel=1e-3)
        assert summary[f"{prefix}/loss"] == pytest.approx((rmse / units["target_scale"]) ** 2, rel=1e-3)
        assert rmse < 0.2 * float(wanted.std())
    assert summary["float/rmse"] < 0.2 * units["target_scale"]
    rows = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert np.allclose(rows["val/rmse"], units["target_scale"] * np.sqrt(rows["val/loss"]), rtol=1e-4)


def test_the_task_takes_its_scale_from_the_splits() -> None:
    scaled = real(np.array([10.0, 30.0] * 20))
    assert task_for(scaled) == Regression(scale=scaled.target_scale) == Regression(scale=pytest.approx(10, rel=0.1))
    assert task_for(real(np.array([10.0, 30.0] * 20), scale_target=False)) == Regression(scale=1.0)
    assert task_for(numbered([0, 1, 2] * 20, scale_target=True)) == Classification()
    output, target = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [0.0]])
    task = Regression(scale=10.0)
    assert task.loss(output, target) == 2.5
    assert task.finish(float(task.score(output, target)) / 2) == pytest.approx(10 * 2.5**0.5)
