"""Networks of others and those of physics, exported to every target. ``python tests/export/zoo.py`` writes the table of docs/hardware.md.

Formats are coarse, weights random, and 80 % of them 0, so that each export takes seconds to minutes.
"""

import json
import logging
import math
import re
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

import pquant
from pquant.data.splits import Splits
from pquant.errors import ConfigError
from pquant.export import HLS4ML, ONNX, RTL, Exporter
from pquant.export.check import multiplications
from pquant.export.constant import ConstantOutputError
from pquant.export.recording import record
from pquant.layers.base import CompressedLayer
from pquant.quantization import Quantization
from tests.layers.zoo import make, names

PAGE = Path(__file__).parents[2] / "docs" / "hardware.md"
FORMATS = Quantization(
    default_data_keep_negatives=True,
    default_data_integer_bits=2,
    default_data_fractional_bits=3,
    default_weight_keep_negatives=True,
    default_weight_fractional_bits=4,
    quantize_output=True,
    use_relu_multiplier=False,
)
KEPT, GAIN = 0.2, 3.0
"""Share of the weights that are not 0, and what the variance of a sum is of that of its inputs."""
TARGETS: dict[str, tuple[Exporter, int]] = {
    "`rtl`": (RTL(vectors=100, simulator="emulator", synthesize="no"), 100_000),
    "`onnx`": (ONNX(vectors=64, qonnx_vectors=1), 2 * 10**7),
    "`onnx`, hls4ml": (ONNX(vectors=64, qonnx_vectors=1, dialect="hls4ml"), 10**7),
    "`onnx`, finn": (ONNX(vectors=64, qonnx_vectors=1, dialect="finn"), 10**7),
    "`hls4ml`": (HLS4ML(vectors=64), 100_000),
    "`hls4ml`, stream": (HLS4ML(vectors=64, io_type="stream", strategy="resource"), 100_000),
}
"""Each target with the most multiplications of a network that is exported here; larger ones are only checked."""


def sparse(name: str) -> tuple[nn.Module, torch.Tensor]:
    """Return a compressed network, four fifths of whose weights are 0, and a batch for it."""
    model, x = make(name)
    compressed = pquant.compress(model, None, FORMATS, x)
    with torch.no_grad():
        for layer in compressed.modules():
            if isinstance(layer, CompressedLayer):
                kept = torch.rand(layer.weight.shape) < KEPT
                layer.weight.copy_(kept * torch.randn(layer.weight.shape) * math.sqrt(GAIN / max(KEPT * layer.weight[0].numel(), 1)))
    return compressed, x


def result(exporter: Exporter, most: int, model: nn.Module, x: torch.Tensor) -> str:
    """Return "exact" for an export that was compared, "accepted" for a network that was only checked, else why it is refused.

    An export of a network whose random weights let nothing through is one that was only checked.
    """
    shape = tuple(x.shape[1:])
    try:
        exporter.check(model, shape)
    except ConfigError as error:
        return re.sub(r"^export\S*: ", "", str(error)).split(";")[0].replace("|", "/")
    if multiplications(record(model, shape)) > most:
        return "accepted"
    data = TensorDataset(torch.randn(20, *shape), torch.zeros(20, dtype=torch.long))
    try:
        with tempfile.TemporaryDirectory() as folder:
            figures = exporter.export(pquant.finalize(model), Splits(data, data, data, 10), Path(folder))
    except ConstantOutputError:
        return "accepted"
    assert any(value is True for key, value in figures.items() if key.endswith("bit_exact"))
    return "exact"


def row(name: str) -> str:
    """Return the row of the table for a network."""
    model, x = sparse(name)
    results = []
    for target, (exporter, most) in TARGETS.items():
        results.append(result(exporter, most, model, x))
        print(f"{name}, {target}: {results[-1]}", flush=True)
    return f"| {name} | {' | '.join(results)} |"


def main() -> None:
    """Write the table between the marks of the page, or only the rows of the networks whose names are given."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    for name in json.loads(sys.argv[1]) if len(sys.argv) > 1 else names():
        write(name, row(name))


def write(name: str, line: str) -> None:
    """Put the row of a network into the table of the page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition("<!-- targets -->\n")
    table, _, after = rest.partition("<!-- /targets -->")
    rows = {known.split("|")[1].strip(): known for known in table.splitlines()[2:]} | {name: line}
    head = [f"| network | {' | '.join(TARGETS)} |", f"|---|{'---|' * len(TARGETS)}"]
    lines = [*head, *(rows[known] for known in names() if known in rows)]
    PAGE.write_text(f"{before}<!-- targets -->\n" + "\n".join(lines) + f"\n<!-- /targets -->{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
