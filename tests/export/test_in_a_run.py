"""Exports as ``run.py`` makes them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHORT = "training.pretraining_epochs=0 training.epochs=1 training.fine_tuning_epochs=1 progress=quiet tracker=none model.sizes=[null,4,null]".split()
RTL = "export=rtl export.simulator=emulator export.synthesize=no export.vectors=100".split()


def run(*overrides: str) -> str:
    command = [sys.executable, "run.py", *overrides]
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("PQUANT", "HYDRA"))}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=variables, timeout=300, check=False).stderr


@pytest.mark.slow
def test_export_of_a_run_and_of_an_earlier_one(tmp_path: Path) -> None:
    pytest.importorskip("alkaid")
    pytest.importorskip("qonnx")
    said = run(*SHORT, *RTL, f"hydra.run.dir={tmp_path / 'first'}", "training.pareto=true")
    summary = json.loads((tmp_path / "first" / "summary.json").read_text())
    assert summary["rtl/bit_exact"] is True and summary["rtl/luts_estimated"] > 0, said
    assert (tmp_path / "first" / "export" / "rtl" / "src" / "net_wrapper.v").is_file()
    options = [f"from_run={tmp_path / 'first'}", "tracker=none", "progress=quiet"]
    said = run(*options, "export=onnx", "export.vectors=64", "export.qonnx_vectors=2", f"hydra.run.dir={tmp_path / 'second'}")
    assert json.loads((tmp_path / "second" / "summary.json").read_text())["onnx/qonnx_bit_exact"] is True, said
    said = run(*options, "from_epoch=all", *RTL, f"hydra.run.dir={tmp_path / 'third'}")
    assert "rtl/luts_estimated" in (tmp_path / "third" / "front.csv").read_text(), said


def test_what_cannot_be_exported_is_said_before_training(tmp_path: Path) -> None:
    pytest.importorskip("alkaid")
    said = run(*SHORT, *RTL, "quantization.overflow_mode_data=WRAP_SM", f"hydra.run.dir={tmp_path / 'run'}")
    assert "error: export: layer 'layers.0' has overflow_mode WRAP_SM" in said and not (tmp_path / "run" / "metrics.csv").exists()


def test_a_model_whose_output_ignores_its_input_is_refused_after_its_report_is_written(tmp_path: Path) -> None:
    pytest.importorskip("alkaid")
    said = run(*SHORT, *RTL, "quantization.default_weight_integer_bits=-9", f"hydra.run.dir={tmp_path}")
    assert "error: export: the model gives the same output on all 100 vectors: nothing of its input passes layer 'layers.0'" in said
    assert (tmp_path / "report.html").is_file() and not (tmp_path / "export").exists()
    assert json.loads((tmp_path / "status.json").read_text())["status"] == "failed"
    assert json.loads((tmp_path / "model.json").read_text())["classes"] == [str(digit) for digit in range(10)]


def test_raw_inputs_need_powers_of_two_which_is_said_before_training(tmp_path: Path) -> None:
    pytest.importorskip("alkaid")
    said = run(*SHORT, *RTL, "export.raw_inputs=true", f"hydra.run.dir={tmp_path / 'run'}")
    assert "error: export.raw_inputs: feature 1 is divided by" in said and "train with data.standardize=power_of_two" in said
    assert not (tmp_path / "run" / "metrics.csv").exists()
    said = run(*SHORT, *RTL, "export.raw_inputs=true", "data.standardize=power_of_two", f"hydra.run.dir={tmp_path / 'run'}")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["rtl/bit_exact"] is True, said
