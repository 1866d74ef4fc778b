"""What compression costs in training: time and memory of a step, as ratios to those of the plain network in one process.

    python benchmarks/step_time.py [--model mlp|resnet20|resnet50] [--methods none,dst,...] [--turns 100] [--threads 2] [--compile]
        [--device cpu|cuda] [--batch 64] [--reference "uv run --isolated --no-project --with pquant-ml[torch] python"]

A step is forward, all losses, backward, optimizer and pruning events. The variants take turns of a few steps on end, as training has them, of which
the first two do not count. Right before each comes a turn of the plain network, so noise of the machine meets both alike. A ratio is the median over
the turns of (variant / the plain one before it), with the quartiles beside it; that of "plain" to itself tells the noise. ``--compile`` adds compiled
steps and inferences, ``--reference`` the same rows of PQuantML, whose package has the name of ours, so that it needs an interpreter of its own
(``pquant_ml.py``); all beside the same eager plain one. Memory is the most that is allocated within a step, with parameters and optimizer state.
ResNet-20 has batches of CIFAR's shape, ResNet-50 (timm's, from the extra ``bench``) of ImageNet's.
Writes ``benchmarks/results/step_time_<model>.{json,md,svg}``, with ``_compiled`` behind the model for ``--compile``, and the kind of a ``--device``
that is no CPU.
"""

import argparse
import copy
import gc
import json
import shlex
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import torch
from burst import Call, burst, nothing
from torch import nn
from torch.profiler import ProfilerActivity, profile

import pquant
from pquant.metrics import Penalty
from pquant.models import MLP, ResNet20
from pquant.pruning import CS, DST, MDMM, PDP, ActivationPruning, AutoSparse, NoPruning, PruningMethod, Wanda
from pquant.quantization import Quantization
from pquant.training.compile import in_one_graph
from pquant.training.lifecycle import StepEvents
from pquant.training.optimizer import parameter_groups

matplotlib.use("svg")

RESULTS = Path(__file__).parent / "results"
FIXED = Quantization(
    default_weight_keep_negatives=True,
    default_weight_fractional_bits=7,
    default_data_keep_negatives=True,
    default_data_integer_bits=3,
    default_data_fractional_bits=4,
    quantize_output=False,
    use_relu_multiplier=False,
)
HGQ_TENSOR = replace(FIXED, use_hgq=True, hgq_beta=1e-7, hgq_gamma=1e-7)
METHODS: dict[str, PruningMethod] = {
    "none": NoPruning(),
    "dst": DST(),
    "wanda": Wanda(),
    "autosparse": AutoSparse(threshold_init=-1.5),
    "cs": CS(threshold_decay=1e-5),
    "pdp": PDP(epsilon="auto", temperature=1e-4),
    "mdmm": MDMM(target_sparsity=0.8),
    "activation_pruning": ActivationPruning(),
}
QUANTIZATIONS = {
    "off": Quantization(enable_quantization=False),
    "fixed": FIXED,
    "hgq per tensor": HGQ_TENSOR,
    "hgq per weight": replace(HGQ_TENSOR, granularity="per_weight", data_granularity="per_channel"),
}
PAUSE = 0.02
"""Seconds after which threads that wait for work have stopped spinning."""
Burst = Callable[[], float]
Rows = dict[str, dict[str, float]]


def variants(methods: list[str]) -> dict[str, tuple[PruningMethod, Quantization]]:
    """Return the named methods under each quantization, but for the plain network."""
    pairs = {f"{method}, {bits}": (METHODS[method], QUANTIZATIONS[bits]) for method in methods for bits in QUANTIZATIONS}
    return {name: pair for name, pair in pairs.items() if name != "none, off"}


def resnet50(input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """Return timm's ResNet-50, which takes images of any size."""
    from timm import create_model

    return create_model("resnet50", num_classes=num_outputs)


NETWORKS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...], int, int]] = {
    "mlp": (partial(MLP, [16, 64, 32, 32, 5]), (16,), 5, 1024),
    "resnet20": (ResNet20, (3, 32, 32), 10, 64),
    "resnet50": (resnet50, (3, 224, 224), 1000, 64),
}
"""What makes a float network, the shape of an example, the number of outputs, and the examples of a batch."""


def network(name: str, batch: int | None, device: torch.device) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Return a float network, a batch of another size if one is given, and its labels."""
    make, shape, outputs, examples = NETWORKS[name]
    examples = batch or examples
    x, y = torch.randn(examples, *shape), torch.randint(0, outputs, (examples,))
    return make(input_shape=shape, num_outputs=outputs).to(device), x.to(device), y.to(device)


def plain_step(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Call:
    """Return a training step as a user of plain PyTorch writes it."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def compressed_step(model: nn.Module, x: torch.Tensor, y: torch.Tensor, compiled: bool = False) -> Call:
    """Return the training step of a compressed model (a plain one is one that compresses nothing), as the trainer makes it."""
    pquant.set_stage(model, pquant.Stage.TRAIN, pquant.Horizon(epochs=1000, steps_per_epoch=1000))
    optimizer = torch.optim.Adam(parameter_groups(model), 1e-3, fused=True)
    events, penalty = StepEvents(model), Penalty(model)

    def loss() -> torch.Tensor:
        return nn.functional.cross_entropy(model(x), y) + penalty()

    loss.__code__ = loss.__code__.replace(co_name=loss.__name__)  # its own: the compiler keeps only a few graphs of one code
    forward = in_one_graph(loss, model, x.device) if compiled else loss

    def step() -> None:
        optimizer.zero_grad()
        forward().backward()
        optimizer.step()
        events()

    return step


def inference(model: nn.Module, x: torch.Tensor) -> Call:
    """Return a forward pass in evaluation mode."""
    model.eval()

    def forward() -> None:
        with torch.no_grad():
            model(x)

    return forward


class Reference:
    """The steps of PQuantML, taken one by one in a process of its own, which says how long each took."""

    def __init__(self, interpreter: str, model: str, threads: int, methods: list[str]) -> None:
        command = [*shlex.split(interpreter), str(Path(__file__).with_name("pquant_ml.py")), model, str(threads), ",".join(methods)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.names: list[str] = json.loads(self._line())

    def burst(self, name: str) -> float:
        """Take the steps, or inferences, of a turn; return their mean seconds."""
        assert self.process.stdin
        self.process.stdin.write(name + "\n")
        return float(self._line())

    def bursts(self, kind: str) -> dict[str, Burst]:
        """Return all variants' turns of steps, or of inferences."""
        return {f"pquant-ml: {name.removeprefix(kind)}": partial(self.burst, name) for name in self.names if name.startswith(kind)}

    def _line(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the reference process has ended; its error is above")
        return line


def measure(bursts: dict[str, Burst], turns: int) -> Rows:
    """Return, per variant, its median milliseconds and the quartiles of its ratio to the "plain" one before it over the turns."""
    for one in bursts.values():
        one()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in bursts}
    for _ in range(turns):
        for name, one in bursts.items():
            plain, taken = (rested(each) for each in (bursts["plain"], one))
            times[name].append((taken, taken / plain))
    rows = {}
    for name, pairs in times.items():
        taken, ratios = zip(*pairs, strict=True)
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows[name] = {"milliseconds": 1e3 * statistics.median(taken), "ratio": middle, "ratio_low": low, "ratio_high": high}
    return rows


def rested(one: Burst) -> float:
    """Return what a turn takes after a pause."""
    time.sleep(PAUSE)
    return one()


def peak_memory(step: Call, device: torch.device) -> float:
    """Return the most bytes that a step has allocated at one time, beyond what was there before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    held = peak = 0
    results: Any = profiler.profiler.kineto_results
    for event in sorted((event for event in results.events() if event.name() == "[memory]"), key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def static_memory(model: nn.Module) -> int:
    """Return the bytes of parameters, with gradient-free copies of Adam's two momenta, and buffers."""
    parameters = sum(one.numel() * one.element_size() for one in model.parameters())
    return 3 * parameters + sum(one.numel() * one.element_size() for one in model.buffers())


def table(title: str, rows: Rows) -> str:
    """Return a Markdown table."""
    memory = any("memory" in row for row in rows.values())
    lines = [f"| {title} | ms | ratio to plain | quartiles |" + (" memory |" if memory else ""), "|---|---:|---:|---:|" + ("---:|" if memory else "")]
    for name, row in rows.items():
        line = f"| {name} | {row['milliseconds']:.2f} | {row['ratio']:.2f} | {row['ratio_low']:.2f}-{row['ratio_high']:.2f} |"
        lines.append(line + (f" {row['memory']:.2f} |" if "memory" in row else " |" if memory else ""))
    return "\n".join(lines) + "\n"


def plot(path: Path, title: str, rows: Rows) -> None:
    """Draw the ratios as bars, with their quartiles."""
    from matplotlib import pyplot

    names = [name for name in rows if name != "plain"]
    ratios = [rows[name]["ratio"] for name in names]
    spread = [[rows[name]["ratio"] - rows[name]["ratio_low"] for name in names], [rows[name]["ratio_high"] - rows[name]["ratio"] for name in names]]
    colors = ["tab:gray" if "pquant-ml" in name else "tab:green" if "compiled" in name else "tab:blue" for name in names]
    figure, axes = pyplot.subplots(figsize=(7, 0.6 + 0.19 * len(names)))
    axes.barh(names, ratios, xerr=spread, color=colors, height=0.7, error_kw={"lw": 0.7})
    axes.axvline(1, color="black", lw=0.8)
    axes.invert_yaxis()
    axes.tick_params(labelsize=7)
    axes.set_xlabel(title, fontsize=8)
    figure.savefig(path, bbox_inches="tight")


def measured(arguments: argparse.Namespace) -> tuple[Rows, Rows]:
    """Return the rows of training steps, and those of inferences."""
    methods, device = arguments.methods.split(","), torch.device(arguments.device)
    pairs = variants(methods)
    reference = Reference(arguments.reference, arguments.model, arguments.threads, methods) if arguments.reference else None
    model, x, y = network(arguments.model, arguments.batch, device)
    compressed = {name: pquant.compress(model, *pair, x) for name, pair in pairs.items()}
    finals = {name: pquant.finalize(one) for name, one in compressed.items()}
    steps = {"plain": plain_step(model.train(), x, y)} | {name: compressed_step(one.train(), x, y) for name, one in compressed.items()}
    forwards = {"plain": inference(copy.deepcopy(model), x)}
    forwards |= {f"{name}, eval": inference(copy.deepcopy(one), x) for name, one in compressed.items()}
    forwards |= {f"{name}, finalized": inference(one, x) for name, one in finals.items()}
    trained = {"plain": model, **compressed}
    if arguments.compile:
        twins = {"plain, compiled": copy.deepcopy(model)}
        twins |= {f"{name}, compiled": pquant.compress(model, *pair, x) for name, pair in pairs.items()}
        steps |= {name: compressed_step(one.train(), x, y, compiled=True) for name, one in twins.items()}
        trained |= twins
        forwards |= {f"{name}, finalized, compiled": inference(torch.compile(copy.deepcopy(one).eval()), x) for name, one in finals.items()}
    gc.freeze()  # as run.py does once all is imported
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else nothing
    theirs = [reference.bursts(kind) if reference else {} for kind in ("step: ", "finalized: ")]
    training, inferences = (
        measure({name: partial(burst, call, wait) for name, call in ours.items()} | other, arguments.turns)
        for ours, other in zip((steps, forwards), theirs, strict=True)
    )
    memory = {name: peak_memory(step, device) + static_memory(trained[name]) for name, step in steps.items()}
    for name, most in memory.items():
        training[name]["memory"] = most / memory["plain"]
    return training, inferences


def main() -> None:
    """Measure one model and write its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=NETWORKS, default="mlp")
    parser.add_argument("--methods", default=",".join(METHODS), help="names, separated by commas")
    parser.add_argument("--turns", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cpu", help="what torch calls it")
    parser.add_argument("--batch", type=int, help="examples of a batch, if not the model's own number")
    parser.add_argument("--reference", help="command of a Python that has pquant-ml; on the CPU, mlp or resnet20")
    arguments = parser.parse_args()
    if arguments.reference and (arguments.device != "cpu" or arguments.batch or arguments.model == "resnet50"):
        parser.error("--reference takes its steps on the CPU, with batches of the usual size, of mlp or resnet20")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    training, inferences = measured(arguments)
    text = table(f"training step, {arguments.model}", training) + "\n" + table(f"inference, {arguments.model}", inferences)
    print(text)
    RESULTS.mkdir(exist_ok=True)
    kind = torch.device(arguments.device).type
    name = f"step_time_{arguments.model}" + "_compiled" * arguments.compile + f"_{kind}" * (kind != "cpu")
    (RESULTS / f"{name}.md").write_text(text)
    device = torch.cuda.get_device_name(arguments.device) if kind == "cuda" else kind
    figures = {"torch": torch.__version__, "device": device, "threads": arguments.threads, "turns": arguments.turns}
    (RESULTS / f"{name}.json").write_text(json.dumps(figures | {"training": training, "inference": inferences}, indent=2) + "\n")
    plot(RESULTS / f"{name}.svg", f"time of a training step, plain PyTorch = 1 ({arguments.model})", training)


if __name__ == "__main__":
    main()
