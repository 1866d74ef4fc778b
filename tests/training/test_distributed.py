import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
COMMON = [
    "tracker=none",
    "progress=quiet",
    "training.epochs=3",
    "training.pretraining_epochs=1",
    "training.fine_tuning_epochs=1",
    "training.threads=1",
]
METHODS = {
    "wanda": ["pruning=wanda", "pruning.t_start_collecting_batch=3", "pruning.t_delta=10"],
    "activation": ["pruning=activation_pruning", "pruning.t_start_collecting_batch=3", "pruning.t_delta=10"],
    "dst-hgq": ["pruning=dst", "quantization=hgq"],
    "teacher": ["pruning=dst", "distillation=teacher", "distillation.features=[layers.1]"],
    "wrap": ["pruning=none", "quantization=hgq", "quantization.overflow_mode_data=WRAP"],
}


def train(folder: Path, launcher: list[str], overrides: list[str]) -> dict:
    command = [*launcher, str(ROOT / "run.py"), f"hydra.run.dir={folder}", *COMMON, *overrides]
    done = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_train_what_one_does(method: str, tmp_path: Path) -> None:
    overrides = [*METHODS[method], "training.batch_size=100"]
    alone = train(tmp_path / "alone", [sys.executable], overrides)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    both = train(tmp_path / "both", torchrun, overrides)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("alone", "both"))
    assert one.keys() == two.keys()
    weights = [name for name in one if name.endswith("weight")]
    assert weights
    if METHODS[method][0] != "pruning=none":
        assert all(torch.equal(one[name] == 0, two[name] == 0) for name in weights)
    assert abs(alone["val/accuracy"] - both["val/accuracy"]) < 0.02 and abs(alone["sparsity"] - both["sparsity"]) < 0.01
