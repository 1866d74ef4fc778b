# /// script
# requires-python = "==3.11.*"
# dependencies = ["hgq2==0.2.0", "jax[cpu]==0.10.2", "keras==3.15.1", "numpy<3"]
# ///
"""Train HGQ2's network for jets with HGQ2 itself: Keras on JAX, batch norm folded, its controller or a rising beta, its Pareto archive.

``uv run experiments/jets_front/hgq2.py <split.npz> <seed> <variant> <out.csv>`` makes an environment of its own. The split is one of
``experiments/splits.py``; the variant is ``target_<EBOPs>`` or ``rising``. Each model is one row of the file, to which the script appends.
"""

import csv
import math
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"
sys.path.insert(0, str(Path(__file__).parents[1]))

import keras  # noqa: E402
import numpy as np  # noqa: E402
from hgq.config import QuantizerConfigScope  # noqa: E402
from hgq.layers import QDense, QEinsumDenseBatchnorm  # noqa: E402
from hgq.utils import trace_minmax  # noqa: E402
from hgq.utils.sugar import BetaPID, BetaScheduler, FreeEBOPs, ParetoFront, PieceWiseSchedule  # noqa: E402
from ruler import dense_ebops, zeros  # noqa: E402

EPOCHS, BATCH, EVALUATE_EVERY = 300, 1024, 10
CYCLES, DECAY, LEARNING_RATE, LOWEST_RATE = 1, 0.94, 5e-3, 1e-6
FIRST_BETA, LAST_BETA, CONSTANT = 5e-7, 1e-3, 0.02
BITS = 3
INTEGRAL = 2e-2
"""Integral gain of the controller, ten times HGQ2's default: with that one, runs of this length do not reach their targets."""


def network() -> keras.Model:
    """Return 16-64-64-32-5 with the formats, and the bits at the start, of the authors' own training."""
    with (
        QuantizerConfigScope(place="weight", default_q_type="kif", overflow_mode="SAT_SYM", f0=BITS),
        QuantizerConfigScope(place="bias", overflow_mode="WRAP"),
        QuantizerConfigScope(place="datalane", i0=1, f0=BITS),
    ):
        x = inputs = keras.Input((16,))
        for width in (64, 64, 32):
            x = QEinsumDenseBatchnorm("bc,cC->bC", width, bias_axes="C", activation="relu")(x)
        return keras.Model(inputs, QDense(5)(x))


def learning_rate(epoch: int) -> float:
    """Return a cosine over each cycle, from a maximum that falls from cycle to cycle."""
    cycle, place = divmod(epoch, EPOCHS / CYCLES)
    return LOWEST_RATE + 0.5 * (LEARNING_RATE - LOWEST_RATE) * (1 + math.cos(math.pi * place * CYCLES / EPOCHS)) * DECAY**cycle


def beta(variant: str) -> keras.callbacks.Callback:
    """Return what sets beta."""
    if variant == "rising":
        points = [(0, FIRST_BETA, "constant"), (int(CONSTANT * EPOCHS), FIRST_BETA, "log"), (EPOCHS, LAST_BETA, "constant")]
        return BetaScheduler(PieceWiseSchedule(points))
    return BetaPID(float(variant.removeprefix("target_")), init_beta=1e-5, i=INTEGRAL)


def quantized(layer: keras.Layer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the weight (inputs, outputs) and bias of a layer as they multiply and add in the end, and the bits of its inputs."""
    bits = layer.iq.bits_((1, layer.kernel.shape[0]))
    return np.asarray(layer.qkernel), np.asarray(layer.qbias), np.asarray(bits)[0]


def measured(model: keras.Model, data: dict[str, np.ndarray]) -> dict[str, float]:
    """Return accuracies, sparsity and EBOPs of a trained model, its integer bits traced on the training data."""
    own = trace_minmax(model, data["x_train"], batch_size=7000)
    parameters = [quantized(layer) for layer in model.layers if hasattr(layer, "qkernel")]
    parts = ("validation", "test")
    accuracy = {part: float((model.predict(data[f"x_{part}"], 4096, verbose=0).argmax(1) == data[f"y_{part}"]).mean()) for part in parts}
    return {
        "val/accuracy": accuracy["validation"],
        "test/accuracy": accuracy["test"],
        "sparsity": zeros(weight for weight, _, _ in parameters),
        "ebops": dense_ebops(parameters),
        "ebops_hgq2": own,
    }


def main() -> None:
    """Train one network and append its models to the file of results."""
    split, seed, variant, out = sys.argv[1:]
    data = dict(np.load(split))
    keras.utils.set_random_seed(int(seed))
    model = network()
    steps = math.ceil(len(data["x_train"]) / BATCH)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(), loss, metrics=["accuracy"], steps_per_execution=steps)
    with tempfile.TemporaryDirectory() as folder:
        name = "{epoch}.weights.h5"
        archive = ParetoFront(folder, ["val_accuracy", "ebops"], [1, -1], name, enable_if=lambda logs: "val_accuracy" in logs)
        callbacks = [FreeEBOPs(), keras.callbacks.LearningRateScheduler(learning_rate), beta(variant)]
        start = time.perf_counter()
        model.fit(
            data["x_train"],
            data["y_train"],
            batch_size=BATCH,
            epochs=EPOCHS,
            validation_data=(data["x_validation"], data["y_validation"]),
            validation_batch_size=4096,
            validation_freq=EVALUATE_EVERY,
            verbose=0,
            callbacks=[*callbacks, archive] if variant == "rising" else callbacks,
        )
        seconds = time.perf_counter() - start
        rows = []
        for file in sorted(Path(folder).glob("*.h5"), key=lambda path: int(path.name.partition(".")[0])) or [None]:
            if file:
                model.load_weights(file)
            epoch = int(file.name.partition(".")[0]) + 1 if file else EPOCHS
            rows.append({"variant": variant, "seed": int(seed), "epoch": epoch} | measured(model, data) | {"wall_seconds": seconds})
    new = not Path(out).exists()
    with Path(out).open("a", newline="") as results:
        writer = csv.DictWriter(results, list(rows[0]), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)
    print(rows[-1])


if __name__ == "__main__":
    main()
