"""The resources of a fully unrolled network by layer: alkaid's estimate, Yosys' cells, EBOPs and pipeline stages."""

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from alkaid.codegen import rtl as alkaid_rtl
from alkaid.codegen.rtl.verilog import comb_logic_gen
from alkaid.codegen.rtl.verilog.lookup import lookup_source
from alkaid.trace.passes.dce import _index_remap, dead_code_elimin
from alkaid.types import CombLogic, Op

from pquant.export.graph import Graph
from pquant.export.rtl.wires import logic
from pquant.tracking.files import MetricsCsv, write_atomic

STATIC = Path(alkaid_rtl.__file__).parent / "verilog" / "source"
INPUT, CONSTANT = -1, 5
"""alkaid's opcodes of inputs and constants."""

LAYERS = "layers"
TITLES = {
    "layer": "layer",
    "ebops": "EBOPs",
    "luts_estimated": "LUTs, estimated",
    "luts_yosys": "LUTs, Yosys",
    "carries_yosys": "carry blocks, Yosys",
    "delay_ns_estimated": "delay from the input, ns",
    "first_stage": "first stage",
    "last_stage": "last stage",
}
Count = Callable[[Path, Sequence[str], str], Mapping[str, Mapping[str, int]]]
"""A function that returns the cells of each module, given a folder, the names of its source files, and the top module."""


@dataclass(frozen=True)
class Part:
    """The operations that one layer, or one sum, adds to the logic of the layers before it.

    Attributes:
        name: the layer's dotted name; all calls of a layer are one part.
        logic: these operations as separate logic.
        latencies: alkaid's estimate of the time in ns from the model's input to the results of the first and of the last operation.
    """

    name: str
    logic: CombLogic
    latencies: tuple[float, float]


def parts(graph: Graph) -> list[Part]:
    """Return the parts of a finalized model's logic in order. Each operation is in one part, so that the estimates of the parts add up.

    An operation belongs to the first layer whose result depends on it. Operations that the output does not depend on are in no part.
    """
    comb = logic(graph, every_layer=True)
    owners = _owners(comb, graph)
    names = list(dict.fromkeys(graph.steps[owner].name for owner in sorted(owners) if owner >= 0))
    found = []
    for name in names:
        own = [at for at, owner in enumerate(owners) if owner >= 0 and graph.steps[owner].name == name]
        latencies = [comb.ops[at].latency for at in own]
        found.append(Part(name, _cut(comb, own, owners, _outputs(comb, graph)), (min(latencies), max(latencies))))
    return found


def write_resources(graph: Graph, ebops: Mapping[str, float | None], target: Path, cutoff: float | None, count: Count | None) -> list[dict[str, Any]]:
    """Write ``resources.csv`` to ``target`` and return its rows.

    A row has the layer, its EBOPs, LUTs as alkaid estimates them, with ``count`` the cells that Yosys counts, the delay in ns from the model's input
    to its last result, and its first and last pipeline stage.

    Args:
        graph: the graph of the finalized model.
        ebops: EBOPs of each layer, by name; a sum has none.
        target: the folder; ``layers`` in it gets the files of Yosys.
        cutoff: the largest delay in ns between two registers; None without registers.
        count: counts the cells of modules; None: they are not counted.
    """
    found = parts(graph)
    cells = count_parts(found, target / "layers", count) if count else [{} for _ in found]
    whole = max((part.latencies[1] for part in found), default=0.0)
    stages = max(math.ceil(whole / cutoff), 1) if cutoff else 0
    rows = []
    for part, counted in zip(found, cells, strict=True):
        row = {"layer": part.name, "ebops": ebops.get(part.name), "luts_estimated": round(part.logic.cost, 1), **counted}
        row["delay_ns_estimated"] = round(part.latencies[1], 2)
        if stages and whole:
            first, last = (min(max(math.ceil(latency / whole * stages), 1), stages) for latency in part.latencies)
            row |= {"first_stage": first, "last_stage": last}
        rows.append(row)
    MetricsCsv(target / "resources.csv").rewrite(rows)
    return rows


def table(rows: Sequence[Mapping[str, Any]], estimated: int, counted: int | None) -> str:
    """Return the rows as a table, and explain their sums; ``estimated`` and ``counted`` are the LUTs of the model, by alkaid and by Yosys."""
    if not rows:
        return ""
    titles = {name: title for name, title in TITLES.items() if any(name in row for row in rows)}
    lines = [f"| {' | '.join(titles.values())} |", f"|---|{'---:|' * (len(titles) - 1)}"]
    lines += [f"| {' | '.join(_cell(row.get(name)) for name in titles)} |" for row in rows]
    lines += ["", f"The layers' estimates add up to {sum(row['luts_estimated'] for row in rows):,.0f} LUTs, and the whole has {estimated:,}."]
    if counted is not None:
        lines.append(f"Their Yosys counts add up to {sum(row['luts_yosys'] for row in rows):,}, and the whole has {counted:,}:")
        lines.append("in its second pass Yosys maps each layer without seeing the others, and without registers.")
    lines.append(
        "A layer has the quantizers at its input and output, and what several layers share belongs to the first of them; one that needs no logic"
    )
    lines.append("of its own is left out.")
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    return "-" if value is None else f"`{value}`" if isinstance(value, str) else f"{value:,.1f}".removesuffix(".0")


def count_parts(found: Sequence[Part], folder: Path, count: Count) -> list[dict[str, int]]:
    """Write each part as a module to ``layers.v`` in ``folder`` and return its cells, by name as in ``summary.json``; plain wires have none."""
    modules = {f"layer{number}": part.logic for number, part in enumerate(found) if part.logic.cost and part.logic.shape[1]}
    folder.mkdir(parents=True, exist_ok=True)
    static = sorted(STATIC.glob("*.v"))
    for source in static:
        shutil.copy(source, folder)
    text = [f"(* keep_hierarchy *)\n{comb_logic_gen(comb, name)}" for name, comb in modules.items()]
    write_atomic(folder / "layers.v", "\n".join([*text, lookup_source(list(modules.values())), _top(modules)]))
    cells = count(folder, [*(source.name for source in static), "layers.v"], LAYERS)
    none: Mapping[str, int] = dict.fromkeys(("luts", "carries"), 0)
    counted = [cells.get(f"layer{number}", none) for number in range(len(found))]
    return [{f"{kind}_yosys": one[kind] for kind in none} for one in counted]


def _top(modules: Mapping[str, CombLogic]) -> str:
    """Return a module that contains all others, with the ports of all of them."""
    widths = {name: (int(comb.inp_kifs.sum()), int(comb.out_kifs.sum())) for name, comb in modules.items()}
    ports = [f"input [{given - 1}:0] {name}_inp, output [{made - 1}:0] {name}_out" for name, (given, made) in widths.items()]
    parts = [f"{name} {name}_inst (.model_inp({name}_inp), .model_out({name}_out));" for name in modules]
    return f"module {LAYERS} ({', '.join(ports)});\n" + "\n".join(parts) + "\nendmodule\n"


def _outputs(comb: CombLogic, graph: Graph) -> list[int]:
    """Return the operations that compute the model's output."""
    return list(_of_steps(comb, graph))[graph.output - 1]


def _of_steps(comb: CombLogic, graph: Graph) -> Iterator[list[int]]:
    """Yield the operations that compute the result of each step."""
    at = 0
    for step in graph.steps:
        size = math.prod(step.shape)
        yield [index for index in comb.out_idxs[at : at + size] if index >= 0]
        at += size


def _owners(comb: CombLogic, graph: Graph) -> np.ndarray:
    """Return, for each operation, the step that it belongs to; -1 for inputs, constants, and operations that the output does not depend on."""
    live = _ancestors(comb, _outputs(comb, graph))
    owners = np.full(len(comb.ops), -1)
    for number, indices in enumerate(_of_steps(comb, graph)):
        made = live & _ancestors(comb, indices, owners < 0)
        owners[[at for at in np.flatnonzero(made) if comb.ops[at].opcode not in (INPUT, CONSTANT)]] = number
    return owners


def _ancestors(comb: CombLogic, indices: Sequence[int], among: np.ndarray | None = None) -> np.ndarray:
    """Return a mask of the operations that those at ``indices`` depend on, including themselves, along paths inside ``among``."""
    allowed = np.ones(len(comb.ops), dtype=bool) if among is None else among
    found = np.zeros(len(comb.ops), dtype=bool)
    left = [index for index in indices if allowed[index]]
    while left:
        at = left.pop()
        if not found[at]:
            found[at] = True
            left += [index for index in comb.ops[at].addr if allowed[index] and not found[index]]
    return found


def _cut(comb: CombLogic, own: Sequence[int], owners: np.ndarray, outputs: Sequence[int]) -> CombLogic:
    """Return the operations ``own`` as separate logic: its inputs are results of other operations, its outputs are the results that others use."""
    mine = set(own)
    read = {index for at in own for index in comb.ops[at].addr} - mine
    inputs_first = sorted((1, index, index) if comb.ops[index].opcode != INPUT else (0, *comb.ops[index].data, index) for index in read)
    elsewhere = {index for at in np.flatnonzero(owners >= 0) if at not in mine for index in comb.ops[at].addr}
    given = sorted(mine & (elsewhere | set(outputs)))
    places: dict[int, int] = {}
    ops: list[Op] = []
    inputs = 0
    for *_, index in inputs_first:
        op = comb.ops[index]
        constant = op.opcode == CONSTANT
        places[index] = len(ops)
        ops.append(op if constant else Op((), INPUT, (inputs,), op.qint, op.latency, 0.0))
        inputs += not constant
    for index in own:
        places[index] = len(ops)
        ops.append(_index_remap(comb.ops[index], places))
    shape = (inputs, len(given))
    shifts = [0] * inputs, [0] * len(given)
    signs = [False] * len(given)
    whole = CombLogic(shape, shifts[0], [places[at] for at in given], shifts[1], signs, ops, comb.carry_size, comb.adder_size, comb.lookup_tables)
    return dead_code_elimin(whole, keep_dead_inputs=True)
