# /// script
# requires-python = "==3.11.*"
# dependencies = ["pquant-ml==0.1.0", "torch==2.15.0"]
# ///
"""Train the jet network with PQuantML: its training loop and losses, and its configuration of each method, at 8 bits or with trained bits.

``uv run experiments/jets_methods/pquantml.py <split.npz> <seed> <variant>,... <out.csv>`` makes an environment of its own, as its package is called
pquant too. The split is one of ``experiments/splits.py``; a variant is ``<method>_8bit`` or ``<method>_hgq``. Each run is one row of the
file, to which the script appends.
"""

import csv
import os
import sys
import time
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"
HERE = Path(__file__).resolve().parents[1]
sys.path = [str(HERE), *(entry for entry in sys.path if entry and Path(entry).resolve() not in (HERE.parent, HERE / "jets_methods"))]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from ruler import dense_ebops, zeros  # noqa: E402
from torch import nn  # noqa: E402

import pquant  # noqa: E402  (PQuantML's)

STAGES = {"pretraining_epochs": 10, "epochs": 80, "fine_tuning_epochs": 10}
BATCH, LEARNING_RATE, LOWEST_RATE = 2048, 2e-3, 1e-5
BITS = {"default_weight_keep_negatives": 1.0, "default_weight_integer_bits": 0.0, "default_weight_fractional_bits": 7.0}
BITS |= {"default_data_keep_negatives": 1.0, "default_data_integer_bits": 3.0, "default_data_fractional_bits": 4.0}
BITS |= {"quantize_output": False, "use_relu_multiplier": False, "enable_quantization": True}
HGQ = {"use_high_granularity_quantization": True, "granularity": "per_weight", "hgq_beta": 1e-6, "hgq_gamma": 1e-7}
METHODS = {
    "none": (pquant.pdp_config, {"enable_pruning": False}),
    "dst": (pquant.dst_config, {"alpha": 5e-3}),
    "pdp": (pquant.pdp_config, {"sparsity": 0.8, "temperature": 1e-4}),
    "wanda": (pquant.wanda_config, {"sparsity": 0.8, "t_start_collecting_batch": 7}),
    "mdmm": (pquant.mdmm_config, {"target_sparsity": 0.8, "scale": 1.0, "constraint_lr": 1e-2}),
    "cs": (pquant.cs_config, {"threshold_decay": 1e-5}),
    "autosparse": (pquant.autosparse_config, {"threshold_init": -1.5, "alpha_reset_epoch": 20}),
    "activation_pruning": (pquant.ap_config, {"threshold": 0.5, "t_start_collecting_batch": 3, "t_delta": 50}),
}
"""Its configuration of each method, and what is changed in it: what the presets of this repository change too. PQuantML counts
``t_start_collecting_batch`` in epochs: 100 and 50 steps are 7 and 3 of them."""


def configuration(variant: str) -> "pquant.PQConfig":
    """Return the configuration of a run."""
    method, bits = variant.rsplit("_", 1)
    make, changes = METHODS[method]
    config = make()
    sections = (config.quantization_parameters, BITS | (HGQ if bits == "hgq" else {})), (config.pruning_parameters, changes)
    for section, values in (*sections, (config.training_parameters, STAGES)):
        for name, value in values.items():
            setattr(section, name, value)
    return config


class Training:
    """The passes over the training data that PQuantML's loop asks for: Adam with one cosine over all epochs."""

    def __init__(self, model: nn.Module, data: dict[str, np.ndarray]) -> None:
        self.x, self.y = (torch.from_numpy(data[name]) for name in ("x_train", "y_train"))
        self.optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=True)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, sum(STAGES.values()), LOWEST_RATE)

    def epoch(self, model: nn.Module, **_: object) -> None:
        """Train for one epoch."""
        for rows in torch.randperm(len(self.x)).split(BATCH):
            self.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(self.x[rows]), self.y[rows])
            pquant.get_model_losses(model, loss).backward()
            self.optimizer.step()
        self.schedule.step()


def nothing(model: nn.Module, **_: object) -> None:
    """Evaluate nothing between epochs."""


def main() -> None:
    """Train one network of each variant and append its metrics to the file of results."""
    split, seed, variants, out = sys.argv[1:]
    data = dict(np.load(split))
    for variant in variants.split(","):
        row = {"variant": variant, "seed": int(seed)} | trained(variant, int(seed), data)
        new = not Path(out).exists()
        with Path(out).open("a", newline="") as results:
            writer = csv.DictWriter(results, list(row), lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)
        print(row, flush=True)


def trained(variant: str, seed: int, data: dict[str, np.ndarray]) -> dict[str, float]:
    """Train one network and return its metrics."""
    torch.manual_seed(seed)
    config = configuration(variant)
    layers = [nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5)]
    model = pquant.add_compression_layers(nn.Sequential(*layers), config, (BATCH, 16))
    start = time.perf_counter()
    training = Training(model, data)
    model = pquant.train_model(model, config, training.epoch, nothing)
    seconds = time.perf_counter() - start
    return measured(model, data) | {"wall_seconds": seconds}


@torch.no_grad()
def measured(model: nn.Module, data: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the accuracy, sparsity and EBOPs of a trained model, its weights finished, and the EBOPs that PQuantML counts."""
    model.eval()
    own = float(pquant.get_ebops(model))
    pquant.apply_final_compression(model)
    dense = [layer for layer in model.modules() if isinstance(layer, pquant.layers.PQDense)]
    parameters = [(layer.weight.T.numpy(), layer.bias.numpy(), bits(layer)) for layer in dense]
    right = model(torch.from_numpy(data["x_test"])).argmax(1).numpy() == data["y_test"]
    result = {"test/accuracy": float(right.mean()), "sparsity": float(zeros(weight for weight, _, _ in parameters))}
    return result | {"ebops": dense_ebops(parameters), "ebops_pquantml": own}


def bits(layer: nn.Module) -> np.ndarray:
    """Return the bits of the inputs of a layer, (inputs,)."""
    return np.broadcast_to(layer.input_quantizer.get_total_bits((1, layer.in_features)).detach().numpy(), (1, layer.in_features))[0]


if __name__ == "__main__":
    main()
