"""What compression costs in training time: the ratio of a step's time to that of the plain network, in one process.

    python benchmarks/step_time.py [--model mlp|resnet20] [--repeats 200] [--threads 2] [--compile]

A step is forward, all losses, backward, optimizer and pruning events. The variants take turns, so that noise of the machine meets them
alike; ``--compile`` adds compiled steps, beside the same eager plain one. A ratio is the median over the repeats of (variant / plain) in the
same turn, with the quartiles beside it. Writes ``benchmarks/results/step_time_<model>.{json,md}``.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import pquant
from pquant.models import MLP, ResNet20
from pquant.pruning import DST, NoPruning, PruningMethod, Wanda
from pquant.quantization import Quantization
from pquant.training.lifecycle import StepEvents
from pquant.training.optimizer import parameter_groups

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
HGQ_WEIGHT = replace(HGQ_TENSOR, granularity="per_weight", data_granularity="per_channel")
OFF = Quantization(enable_quantization=False)
VARIANTS: dict[str, tuple[PruningMethod, Quantization]] = {
    "fixed 8-bit": (NoPruning(), FIXED),
    "DST": (DST(), OFF),
    "DST + fixed 8-bit": (DST(), FIXED),
    "DST + HGQ per tensor": (DST(), HGQ_TENSOR),
    "DST + HGQ per weight": (DST(), HGQ_WEIGHT),
    "Wanda": (Wanda(), OFF),
    "Wanda + fixed 8-bit": (Wanda(), FIXED),
}


def network(name: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Return a float network, a batch and its labels."""
    if name == "mlp":
        return MLP([16, 64, 32, 32, 5], input_shape=(16,), num_outputs=5), torch.randn(1024, 16), torch.randint(0, 5, (1024,))
    return ResNet20(input_shape=(3, 32, 32), num_outputs=10), torch.randn(64, 3, 32, 32), torch.randint(0, 10, (64,))


def plain_step(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    """Return a training step as a user of plain PyTorch writes it."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def compressed_step(model: nn.Module, x: torch.Tensor, y: torch.Tensor, compiled: bool = False) -> Callable[[], None]:
    """Return the training step of a compressed model (a plain one is one that compresses nothing), as the trainer makes it."""
    pquant.set_stage(model, pquant.Stage.TRAIN, pquant.Horizon(epochs=1000, steps_per_epoch=1000))
    optimizer = torch.optim.Adam(parameter_groups(model), 1e-3, fused=True)
    events, penalty = StepEvents(model, compiled), pquant.Penalty(model)

    def loss() -> torch.Tensor:
        return nn.functional.cross_entropy(model(x), y) + penalty()

    forward = torch.compile(loss) if compiled else loss

    def step() -> None:
        optimizer.zero_grad()
        forward().backward()
        optimizer.step()
        events()

    return step


def inference(model: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    """Return a forward pass in evaluation mode."""
    model.eval()

    def forward() -> None:
        with torch.no_grad():
            model(x)

    return forward


def measure(calls: dict[str, Callable[[], None]], repeats: int) -> dict[str, dict[str, float]]:
    """Return, per call, its median milliseconds and the quartiles of its ratio to "plain" over interleaved repeats."""
    for call in calls.values():
        for _ in range(5):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    rows = {}
    for name, taken in times.items():
        ratios = [one / plain for one, plain in zip(taken, times["plain"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows[name] = {"milliseconds": 1e3 * statistics.median(taken), "ratio": middle, "ratio_low": low, "ratio_high": high}
    return rows


def table(title: str, rows: dict[str, dict[str, float]]) -> str:
    """Return a Markdown table."""
    lines = [f"| {title} | ms | ratio to plain | quartiles |", "|---|---:|---:|---:|"]
    lines += [
        f"| {name} | {row['milliseconds']:.2f} | {row['ratio']:.2f} | {row['ratio_low']:.2f}-{row['ratio_high']:.2f} |" for name, row in rows.items()
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure one model and write its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("mlp", "resnet20"), default="mlp")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model, x, y = network(arguments.model)
    compressed = {name: pquant.compress(model, *method, x) for name, method in VARIANTS.items()}
    forwards = {"plain": inference(model, x)}
    for name, one in compressed.items():
        forwards |= {f"{name}, eval": inference(one, x), f"{name}, finalized": inference(pquant.finalize(one), x)}
    inferences = measure(forwards, arguments.repeats)
    steps = {"plain": plain_step(model.train(), x, y)} | {name: compressed_step(one.train(), x, y) for name, one in compressed.items()}
    if arguments.compile:
        twins = {"plain": copy.deepcopy(model), **{name: pquant.compress(model, *method, x) for name, method in VARIANTS.items()}}
        steps |= {f"{name}, compiled": compressed_step(one.train(), x, y, compiled=True) for name, one in twins.items()}
    training = measure(steps, arguments.repeats)
    text = table(f"training step, {arguments.model}", training) + "\n" + table(f"inference, {arguments.model}", inferences)
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"step_time_{arguments.model}.md").write_text(text)
    figures = {"torch": torch.__version__, "threads": arguments.threads, "repeats": arguments.repeats, "training": training, "inference": inferences}
    (RESULTS / f"step_time_{arguments.model}.json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
