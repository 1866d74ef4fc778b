import csv
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from pquant.export import RTL
from pquant.export.check import checked
from pquant.export.rtl.synthesis import yosys_command
from pquant.metrics import layer_table
from pquant.models import MLP

from .nets import Residual, mlp, net, splits

pytest.importorskip("alkaid")
resources = pytest.importorskip("pquant.export.rtl.resources")
rtl = pytest.importorskip("pquant.export.rtl.exporter")
wires = pytest.importorskip("pquant.export.rtl.wires")

EMULATED = {"vectors": 200, "simulator": "emulator"}


def rows_of(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "export" / "rtl" / "resources.csv").open()))


@pytest.mark.parametrize(
    ("model", "shape", "settings"),
    [
        (mlp(nn.ReLU()), (6,), {}),
        (mlp(nn.ReLU()), (6,), {"use_hgq": True, "data_granularity": "per_weight", "granularity": "per_weight"}),
        (MLP([None, 5, None], (6,), 3, "tanh"), (6,), {"quantize_output": True, "use_real_tanh": True}),
        (Residual(), (1, 4, 4), {}),
    ],
)
def test_the_estimates_of_the_layers_add_up_to_that_of_the_whole(model: nn.Module, shape: tuple[int, ...], settings: dict[str, object]) -> None:
    graph = checked(net(model, shape, **settings), shape, rtl.MODES)
    whole, found = wires.logic(graph), resources.parts(graph)
    assert sum(part.logic.cost for part in found) == pytest.approx(whole.cost)
    assert max(part.latencies[1] for part in found) == pytest.approx(whole.latency[1])
    order = [step.name for step in graph.steps]
    assert [part.name for part in found] == sorted((part.name for part in found), key=order.index)


def test_a_layer_alone_computes_what_it_computes_in_the_network() -> None:
    graph = checked(net(mlp(nn.ReLU()), (6,)), (6,), rtl.MODES)
    found, comb = resources.parts(graph), wires.logic(graph, every_layer=True)
    x = np.random.default_rng(0).integers(-32, 32, (50, 6)) / 8
    values = x * np.ldexp(1.0, comb.inp_shifts)
    for part in found:
        values = part.logic.predict(np.ascontiguousarray(values), n_threads=1)
    assert [part.name for part in found] == ["0", "1", "2"]
    order = np.argsort(comb.out_idxs[-3:])
    expected = comb.predict(x, n_threads=1)[:, -3:] * np.where(comb.out_negs[-3:], -1, 1) * np.ldexp(1.0, np.negative(comb.out_shifts[-3:]))
    assert np.array_equal(values, expected[:, order])


def test_a_layer_that_is_called_twice_is_one_row_and_pruned_logic_is_in_none(tmp_path: Path) -> None:
    model = net(Residual(), (1, 4, 4))
    RTL(**EMULATED, synthesize="no", latency_cutoff=3.0).export(model, splits((1, 4, 4)), tmp_path)
    rows = rows_of(tmp_path)
    assert [row["layer"] for row in rows].count("relu") == 1
    costs = {row["name"]: row["ebops"] for row in layer_table(model)}
    assert {row["layer"]: float(row["ebops"]) for row in rows if row["ebops"]} == {name: costs[name] for name in costs if name in costs}
    assert [row["ebops"] for row in rows if row["layer"].startswith(("sub in", "add in"))] == ["", ""]
    assert all(1 <= int(row["first_stage"]) <= int(row["last_stage"]) for row in rows)
    assert "luts_yosys" not in rows[0]
    text = (tmp_path / "export" / "rtl" / "README.md").read_text()
    assert "## Resources by layer" in text and "| `dense` |" in text and "Their Yosys counts" not in text


def test_combinational_logic_has_no_stages_and_by_layer_can_be_off(tmp_path: Path) -> None:
    model = net(mlp(nn.ReLU()), (6,))
    RTL(**EMULATED, synthesize="no", pipelined=False).export(model, splits((6,)), tmp_path / "a")
    assert "last_stage" not in rows_of(tmp_path / "a")[0]
    RTL(**EMULATED, synthesize="no", by_layer=False).export(model, splits((6,)), tmp_path / "b")
    assert not (tmp_path / "b" / "export" / "rtl" / "resources.csv").exists()
    assert "Resources by layer" not in (tmp_path / "b" / "export" / "rtl" / "README.md").read_text()


def test_yosys_counts_each_layer_of_a_second_pass(tmp_path: Path) -> None:
    if yosys_command() is None:
        pytest.skip("Yosys is not installed")
    metrics = RTL(**EMULATED, synthesize="yes").export(net(MLP([None, 2, None], (2,), 2, "tanh"), (2,), use_real_tanh=True), splits((2,)), tmp_path)
    rows = rows_of(tmp_path)
    assert [row["layer"] for row in rows] == ["layers.0", "layers.1", "layers.2"]
    assert all(int(row["luts_yosys"]) > 0 for row in rows)
    assert sum(int(row["luts_yosys"]) for row in rows) == pytest.approx(metrics["rtl/luts_yosys"], rel=0.5)
    assert f"the whole has {metrics['rtl/luts_yosys']:,}" in (tmp_path / "export" / "rtl" / "README.md").read_text()
