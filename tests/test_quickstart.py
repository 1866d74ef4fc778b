"""The lines of docs/quickstart.md about one's own data and model, as they stand there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "quickstart.md").read_text()


def run(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    job = line.replace("python run.py", f"{sys.executable} {ROOT / 'run.py'}") + f" tracker=none hydra.run.dir={folder / 'run'}"
    return subprocess.run(["bash", "-c", job], cwd=folder, capture_output=True, text=True, timeout=120, env=os.environ | {"COLUMNS": "120"})


def line_with(word: str) -> str:
    return next(line.split("   #")[0] for line in PAGE.splitlines() if line.startswith(("python run.py", "PQUANT_ALLOW")) and word in line)


def test_a_table_of_ones_own(tmp_path: Path) -> None:
    rows = [f"{index % 7},{index % 5},{'ab'[index % 2]}" for index in range(60)]
    (tmp_path / "events.csv").write_text("\n".join(["x,y,label", *rows]))
    done = run(line_with("data.target=label") + " dry_run=true", tmp_path)
    assert done.returncode == 0 and "32 x 2" in done.stdout, done.stdout + done.stderr


def test_a_table_without_a_target_is_reconstructed(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("\n".join(["x,y", *(f"{index % 7},{index % 5}" for index in range(60))]))
    done = run(line_with("data.target=null") + " dry_run=true", tmp_path)
    assert done.returncode == 0 and "32 x 2" in done.stdout and "2 x 32" in done.stdout, done.stdout + done.stderr


def test_particles_of_ones_own(tmp_path: Path) -> None:
    np.savez(tmp_path / "particles.npz", x=np.random.default_rng(0).normal(size=(60, 20, 3)), y=np.arange(60) % 2)
    done = run(line_with("data=constituents") + " dry_run=true", tmp_path)
    assert done.returncode == 0 and "32 x 3" in done.stdout, done.stdout + done.stderr


def test_a_network_of_ones_own(tmp_path: Path) -> None:
    found = re.search(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert found
    (tmp_path / "my_net.py").write_text(found.group(1))
    done = run(line_with("my_net.Net") + " dry_run=true", tmp_path)
    assert done.returncode == 0 and "48 x 64" in done.stdout, done.stdout + done.stderr


def test_a_wrong_name_is_answered_as_the_page_says(tmp_path: Path) -> None:
    line = next(line for line in PAGE.splitlines() if "pruning=wnda" in line)
    command, promised = line.split("# ")
    done = run(command.strip(), tmp_path)
    assert done.returncode == 1 and done.stderr.startswith(promised.strip())
