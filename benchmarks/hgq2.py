"""The run of HGQ2 for ``long_run.py``: a process that trains a turn for each line of its input and prints its seconds.

python benchmarks/hgq2.py <splits.npz> --batch 4096 --epochs 62 --turns 10 --evaluate-every 10
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"
sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).parent]

import keras  # noqa: E402
import numpy as np  # noqa: E402
from hgq.config import LayerConfigScope, QuantizerConfigScope  # noqa: E402
from hgq.layers import QDense  # noqa: E402
from hgq.utils.sugar import FreeEBOPs, ParetoFront  # noqa: E402


class InTurns(keras.callbacks.Callback):
    """Waits for a line of the input after each turn, and prints what the turn took."""

    def __init__(self, epochs):
        super().__init__()
        self.epochs = epochs

    def on_train_begin(self, logs=None):
        """Wait for the first turn."""
        sys.stdin.readline()
        self.begun = time.perf_counter(), time.process_time()

    def on_epoch_end(self, epoch, logs=None):
        """End a turn where it ends."""
        if (epoch + 1) % self.epochs == 0:
            print(f"turn {time.perf_counter() - self.begun[0]} {time.process_time() - self.begun[1]}", flush=True)
            sys.stdin.readline()
            self.begun = time.perf_counter(), time.process_time()


def network():
    """Return the dense network with HGQ2's default formats: bits by weight, and by channel in data."""
    with (
        QuantizerConfigScope(place="all", default_q_type="kbi", overflow_mode="SAT_SYM"),
        QuantizerConfigScope(place="datalane", default_q_type="kif", overflow_mode="WRAP"),
        LayerConfigScope(enable_ebops=True, beta0=1e-6),
    ):
        layers = [QDense(64, activation="relu"), QDense(32, activation="relu"), QDense(32, activation="relu"), QDense(5)]
        model = keras.Sequential([keras.Input((16,)), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(2e-3), loss, metrics=["accuracy"])
    return model


def main():
    """Train in turns."""
    parser = argparse.ArgumentParser()
    parser.add_argument("splits")
    for name in ("--batch", "--epochs", "--turns", "--evaluate-every"):
        parser.add_argument(name, type=int)
    arguments = parser.parse_args()
    data = np.load(arguments.splits)
    with tempfile.TemporaryDirectory() as folder:
        front = ParetoFront(folder, ["val_accuracy", "ebops"], [1, -1], enable_if=lambda logs: "val_accuracy" in logs)
        network().fit(
            data["x_train"],
            data["y_train"],
            batch_size=arguments.batch,
            epochs=arguments.epochs * arguments.turns,
            validation_data=(data["x_val"], data["y_val"]),
            validation_batch_size=4 * arguments.batch,
            validation_freq=arguments.evaluate_every,
            verbose=0,
            callbacks=[FreeEBOPs(), front, InTurns(arguments.epochs)],
        )


if __name__ == "__main__":
    main()
