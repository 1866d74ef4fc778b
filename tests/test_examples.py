"""Every example, as a reader runs it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


@pytest.mark.slow
@pytest.mark.parametrize("notebook", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_each_notebook_runs_from_a_fresh_kernel(notebook: Path, tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    if notebook.stem == "lightning":
        pytest.importorskip("lightning")
    book = nbformat.read(notebook, as_version=4)
    nbclient.NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(output.get("text", "") for output in book.cells[-1].outputs)
    accuracy, sparsity = re.search(r"accuracy ([\d.]+)%, sparsity ([\d.]+)%", printed).groups()  # type: ignore[union-attr]
    assert float(accuracy) > 80 and float(sparsity) > 10


def test_notebooks_are_kept_without_output() -> None:
    books = [json.loads(path.read_text(encoding="utf-8")) for path in EXAMPLES.glob("*.ipynb")]
    assert len(books) == 2
    assert not [cell for book in books for cell in book["cells"] if cell.get("outputs") or cell.get("execution_count")]


@pytest.mark.slow
def test_own_data_and_network_run_by_their_names(tmp_path: Path) -> None:
    line = next(line for line in (EXAMPLES / "README.md").read_text().splitlines() if "PQUANT_ALLOW=examples" in line)
    allowed, _, *overrides = re.search(r"`PQUANT_ALLOW=(\w+) python (run.py) (.*)`", line).groups()  # type: ignore[union-attr]
    short = ["training.pretraining_epochs=20", "training.epochs=20", "training.fine_tuning_epochs=2", "tracker=none", f"hydra.run.dir={tmp_path}"]
    command = [sys.executable, "run.py", *overrides[0].split(), *short]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PQUANT_ALLOW": allowed}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["test/accuracy"] > 0.6 and summary["params"] == 2 * 32 + 32 + 32 * 32 + 32 + 64 * 2 + 2
