import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest


def epoch(number: int, stage: str, round_: int, **metrics) -> dict:
    return {
        "stage": stage,
        "round": round_,
        "epoch": number,
        "train/loss": 2.0 / number,
        "train/penalty": 0.0,
        "val/loss": 2.5 / number,
        "val/accuracy": 0.5 + number / 100,
        "sparsity": number / 20,
        "ebops": 1000.0 - number,
        "lr": 1e-3,
        "seconds": 1.5,
    } | metrics


@pytest.fixture
def rows() -> list[dict]:
    plan = [("pretrain", 0)] * 3 + [("train", 0)] * 4 + [("train", 1)] * 4 + [("finetune", 0)] * 2
    return [epoch(number, stage, round_) for number, (stage, round_) in enumerate(plan, 1)]


@pytest.fixture
def summary() -> dict:
    return {
        "test/loss": 0.7123,
        "test/accuracy": 0.7612,
        "float/accuracy": 0.7669,
        "sparsity": 0.9012,
        "params": 4389,
        "nonzero_params": 431,
        "weight_bits": 6.25,
        "size_bytes": 35240.0,
        "ebops": 5493.0,
        "epochs": 150,
        "wall_seconds": 187.4,
        "seed": 3,
        "config_hash": "0123456789ab",
        "git_commit": None,
        "version/torch": "2.6.0",
    }


@pytest.fixture
def layers() -> list[dict]:
    dense = {"type": "PQDense", "shape": [5, 16], "params": 80, "nonzero": 20, "sparsity": 0.75, "prunable": True}
    return [
        {"name": "first", **dense, "weight_bits": 6.5, "input_bits": 8.0, "output_bits": None, "ebops": 1234.0},
        {"name": "act", "type": "PQActivation", "input_bits": None, "output_bits": 8.0, "ebops": None},
        {"name": "last", **dense, "weight_bits": None, "input_bits": None, "output_bits": None, "ebops": None, "unknown": [1, {"a": 2}]},
    ]


PROBE = """<script>
addEventListener("load", () => {
  const drawn = [...document.querySelectorAll("svg")].map(svg => svg.getBoundingClientRect().height > 20 && svg.getBBox().width > 20);
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const found = { drawn, wide, ...(window.probe ? probe() : {}) };
  document.documentElement.setAttribute("data-found", JSON.stringify(found));
});
</script>"""


@pytest.fixture
def browse(tmp_path):
    """Return a function that opens a page in a headless browser and gives what it drew, how much wider than the window it is, and its console."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium here")

    def opened(page: Path, width: int = 1200, probe: str = "") -> dict:
        probed = tmp_path / f"probed_{page.name}"
        probed.write_text(page.read_text(encoding="utf-8") + f"<script>{probe}</script>" + PROBE, encoding="utf-8")
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={tmp_path / 'profile'}"]
        options += ["--enable-logging=stderr", f"--window-size={width},900", "--virtual-time-budget=5000", "--dump-dom", probed.as_uri()]
        done = subprocess.run([browser, *options], capture_output=True, text=True, timeout=120)
        console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        return json.loads(html.unescape(re.search(r'data-found="([^"]*)"', done.stdout).group(1))) | {"console": console}

    return opened
