"""Draw the pictures of the pages in docs/methods from short trainings: ``python docs/method_pictures.py [name...]``."""

import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from hydra import compose, initialize_config_dir
from matplotlib.axes import Axes
from torch import Tensor, nn
from torch.nn import functional as F

import pquant
from pquant.config import build_experiment
from pquant.data import Digits, batches
from pquant.experiment import Experiment
from pquant.layers import pruned_layers, weight_layers
from pquant.metrics import Penalty
from pquant.models import MLP
from pquant.quantization import fixed_point

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images" / "methods"
PRUNING = ("magnitude", "dst", "pdp", "wanda", "mdmm", "cs", "autosparse", "activation_pruning")
PRETRAINING, EPOCHS, MOMENTS = 8, 48, (1, 12, 48)
LAYER, POINTS = "layers.0", 200


def preset(*overrides: str) -> Experiment:
    """Return the experiment of a command line."""
    with initialize_config_dir(config_dir=str(ROOT / "conf")):
        return build_experiment(compose("config", overrides=["tracker=none", *overrides]))


def train(model: nn.Module, watch: Callable[[int], None], epochs: int = EPOCHS) -> None:
    """Train on the digits through both stages; call ``watch(epoch)`` after each epoch of the second."""
    loader = batches(Digits().load(0).train, 64, torch.Generator().manual_seed(0))
    penalty, optimizer = Penalty(model), torch.optim.Adam(pquant.parameter_groups(model), 2e-3)
    for stage, length in ((pquant.Stage.PRETRAIN, PRETRAINING), (pquant.Stage.TRAIN, epochs)):
        pquant.set_stage(model, stage, pquant.Horizon(epochs, len(loader)))
        for epoch in range(1, length + 1):
            losses = []
            for x, y in loader:
                task = F.cross_entropy(model(x), y)
                optimizer.zero_grad()
                (task + penalty()).backward()
                optimizer.step()
                pquant.on_batch_end(model)
                losses.append(task.detach())
            pquant.on_epoch_end(model, float(torch.stack(losses).mean()))
            if stage is pquant.Stage.TRAIN:
                watch(epoch)


def network(experiment: Experiment) -> nn.Module:
    """Return the digits' MLP, compressed."""
    torch.manual_seed(0)
    x = Digits().load(0).train[0][0][None]
    return pquant.compress(MLP([64, 64, 32, 32, 10], (64,), 10), experiment.pruning, experiment.quantization, x)


def pruning(name: str) -> None:
    """Draw the effective weights of a layer against its weights after three epochs, and its sparsity over the epochs."""
    model = network(preset(f"pruning={name}", "quantization=none"))
    layer = pruned_layers(model)[LAYER]
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    sparsity: list[float] = []

    def callback(epoch: int) -> None:
        with torch.no_grad():
            if epoch in MOMENTS:
                seen[epoch] = layer.weight.clone(), layer.pruner(layer.weight).clone()
            sparsity.append(1 - layer.pruner.hard_mask(layer.weight).expand_as(layer.weight).float().mean().item())

    train(model, callback)
    figure, axes = plt.subplots(1, 4, figsize=(11, 2.7), layout="constrained")
    shown = torch.randperm(layer.weight.numel(), generator=torch.Generator().manual_seed(0))[:POINTS]
    for axis, (epoch, (weight, effective)) in zip(axes, seen.items(), strict=False):
        x, y = weight.flatten()[shown], effective.flatten()[shown]
        axis.axline((0, 0), slope=1, color="0.85", linewidth=1, zorder=0)
        for chosen, color in ((y != 0, "#357"), (y == 0, "#c44")):
            axis.plot(x[chosen], y[chosen], ".", markersize=3, color=color)
        axis.set(title=f"epoch {epoch} of training", xlabel="weight", xlim=(-0.7, 0.7), ylim=(-0.7, 0.7))
    axes[0].set_ylabel("what the layer trains with")
    line(axes[3], sparsity, "sparsity of the layer", (-0.02, 1))
    save(figure, name)


def fixed(name: str) -> None:
    """Draw the staircase of a few bits, in three overflow modes and for two roundings."""
    x = torch.linspace(-3, 3, 1201)
    figure, axes = plt.subplots(1, 4, figsize=(11, 2.7), layout="constrained")
    for axis, (rounding, overflow) in zip(axes, [("RND", "SAT"), ("TRN", "SAT"), ("RND", "SAT_SYM"), ("RND", "WRAP")], strict=True):
        one = torch.tensor(1.0)
        axis.axline((0, 0), slope=1, color="0.85", linewidth=1, zorder=0)
        axis.plot(x, fixed_point(x, one, one, one, rounding, overflow), color="#357")
        axis.set(title=f"{rounding}, {overflow}", xlabel="value", xlim=(-3, 3), ylim=(-3, 3))
    axes[0].set_ylabel("k = 1, i = 1, f = 1")
    save(figure, name)


def hgq(name: str) -> None:
    """Draw how EBOPs and bits fall, and which weights kept how many."""
    model = network(preset("pruning=none", "quantization=hgq", "quantization.hgq_beta=1e-5"))
    layer = weight_layers(model)[LAYER]
    costs: list[float] = []
    means: list[float] = []

    def bits() -> Tensor:
        return layer.weight_quantizer.bits().detach().expand_as(layer.weight)

    def callback(epoch: int) -> None:
        costs.append(float(pquant.ebops(model)))
        means.append(float(bits().mean()))

    train(model, callback)
    figure, axes = plt.subplots(1, 3, figsize=(11, 2.7), layout="constrained")
    line(axes[0], costs, "EBOPs of the model")
    line(axes[1], means, "mean bits of a weight of the layer")
    final = bits().flatten().round().int()
    axes[2].bar(range(int(final.max()) + 1), torch.bincount(final.clamp(min=0)).tolist(), color="#357")
    axes[2].set(title="weights by their bits, at the end", xlabel="bits")
    save(figure, name)


def fitcompress(name: str) -> None:
    """Draw the path of the search, and the bits that it gave each layer."""
    experiment = preset("pruning=none", "fitcompress=on")
    model = network(experiment)
    experiment.fitcompress.prepare(model)
    train(model, print, epochs=0)
    found = experiment.fitcompress.apply(model, Digits().load(0).train, F.cross_entropy)
    figure, axes = plt.subplots(1, 2, figsize=(11, 2.7), layout="constrained")
    axes[0].plot([step.length for step in found.path], [step.compression for step in found.path], ".-", color="#357")
    axes[0].axhline(found.compression_goal, color="0.6", linewidth=1, linestyle="--")
    axes[0].set(
        title="the path: each step lowers one layer", xlabel="length of the path, the sum of the square roots of FIT", ylabel="size over float32"
    )
    axes[1].bar(list(found.layers), [layer.bits for layer in found.layers.values()], color="#357")
    axes[1].set(title="bits of a weight that were found")
    save(figure, name)


def line(axis: Axes, values: list[float], title: str, limits: tuple[float, float] | None = None) -> None:
    """Draw one figure over the epochs of training."""
    axis.plot(range(1, len(values) + 1), values, color="#357")
    axis.set(title=title, xlabel="epoch of training", ylim=limits or (0, None))


def save(figure: plt.Figure, name: str) -> None:
    """Write one picture; the same run gives the same file."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    figure.savefig(IMAGES / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)


PICTURES = {**dict.fromkeys(PRUNING, pruning), "fixed": fixed, "hgq": hgq, "fitcompress": fitcompress}


def main(names: list[str]) -> None:
    """Draw the named pictures, or all."""
    torch.set_num_threads(1)
    plt.rcParams |= {"svg.hashsalt": "pquant", "svg.fonttype": "none"}
    for name in names or PICTURES:
        PICTURES[name](name)


if __name__ == "__main__":
    main(sys.argv[1:])
