"""The page that compares runs, and the pages of runs and studies, in a real browser."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from pquant import report
from pquant.errors import ConfigError
from pquant.reporting import write_report
from pquant.reporting.compare import load_runs, varied_settings, write_comparison
from pquant.reporting.html import Details
from pquant.reporting.pareto import write_pareto
from pquant.reporting.weights import Weights

EVIL = "</script><img src=x onerror=alert(1)>"


def finished(folder: Path, settings: dict[str, Any], overrides: list[str] | None = None, **metrics: Any) -> None:
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides or []))
    (folder / "summary.json").write_text(json.dumps({name.replace("__", "/"): value for name, value in metrics.items()}))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    for number in range(11):
        method = {"_target_": f"pquant.{'AB'[number % 2]}", "name": "ab"[number % 2], **({"alpha": 0.1} if number % 2 else {})}
        settings = {"seed": number % 3, "pruning": method, "training": {"epochs": 5, "note": EVIL}, "tracker": {"name": str(number)}}
        metrics = {"test__accuracy": 0.9 - number / 100, "val__accuracy": 0.91 - number / 50, "sparsity": number / 20, "ebops": 1000.0 - 50 * number}
        finished(tmp_path / "sweep" / str(number), settings, [f"seed={number % 3}", "x='a b'"], **metrics)
    (tmp_path / "sweep" / "3" / "report.html").write_text("")
    (tmp_path / "sweep" / "failed").mkdir()
    return tmp_path / "sweep"


def test_runs_are_found_once_and_in_the_order_of_their_numbers(sweep: Path) -> None:
    runs = load_runs([sweep, sweep / "3"])
    assert [run.name for run in runs] == [str(number) for number in range(11)]
    assert runs[2].metrics["ebops"] == 900.0 and runs[2].settings["training.epochs"] == "5"
    assert shlex.split(runs[2].command) == ["python", "run.py", "seed=2", "x='a b'"]
    assert load_runs([sweep / "3", sweep / "10"])[0].name == "3"
    with pytest.raises(ConfigError, match="failed' has none"):
        load_runs([sweep, sweep / "failed"])


def test_settings_that_tell_runs_apart_are_each_named_once(sweep: Path) -> None:
    assert varied_settings(load_runs([sweep])) == ["pruning._target_", "seed"]
    assert varied_settings(load_runs([sweep / "0", sweep / "6"])) == []


def test_the_page_has_each_run_with_its_figures_and_needs_nothing_else(sweep: Path) -> None:
    page = sweep / "compare.html"
    write_comparison(page, load_runs([sweep]))
    text = page.read_text(encoding="utf-8")
    assert text.count("<tr data-run=") == 11 and "87.00 %" in text and '<a href="3/report.html">3</a>' in text and text.count("<a ") == 1
    axes = json.loads(re.search(r"const axes = (.*);", text).group(1))  # type: ignore[union-attr]
    assert [axis["label"] for axis in axes] == ["pruning._target_", "seed", "Test accuracy", "Sparsity", "EBOPs"]
    assert axes[0]["choices"] == ["pquant.A", "pquant.B"] and axes[1]["values"][:4] == [0, 1, 2, 0]
    plots = json.loads(re.search(r"const plots = (.*);", text).group(1))  # type: ignore[union-attr]
    assert [point["name"] for point in plots[0]["points"] if point["best"]] == ["0"]
    assert not re.search(r"""src=|url\(|@import|https?://(?!www\.w3\.org/2000/svg)""", text)


def test_runs_with_different_metrics_stand_side_by_side(tmp_path: Path) -> None:
    for name, metric, values in (("classes", "accuracy", (0.8, 0.9)), ("energies", "rmse", (3.0, 5.0))):
        for number, value in enumerate(values):
            finished(tmp_path / f"{name}{number}", {"data": name}, **{f"test__{metric}": value, f"val__{metric}": value}, ebops=100.0 + number)
    write_comparison(tmp_path / "compare.html", load_runs([tmp_path]))
    text = (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert all(column in text for column in ("<button>Test accuracy", "<button>Test rmse", "80.00 %"))
    plots = json.loads(re.search(r"const plots = (.*);", text).group(1))  # type: ignore[union-attr]
    best = {plot["title"]: [point["name"] for point in plot["points"] if point["best"]] for plot in plots}
    assert [names for title, names in best.items() if "EBOPs" in title] == [["classes1"], ["energies0"]]


def test_nothing_that_comes_in_is_markup(tmp_path: Path) -> None:
    for number in range(2):
        finished(tmp_path / str(number), {"note": f"{EVIL}{number}", EVIL: number}, [EVIL], val__accuracy=0.5, test__accuracy=None, ebops=1.0)
    write_comparison(tmp_path / "compare.html", load_runs([tmp_path]))
    assert "<img" not in (tmp_path / "compare.html").read_text()


def test_the_command_says_where_the_page_is(sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    report.main([str(sweep)])
    assert capsys.readouterr().out == f"11 runs compared in {sweep / 'compare.html'}\n" and (sweep / "compare.html").is_file()
    monkeypatch.chdir(sweep.parent)
    report.main([str(sweep / "1"), str(sweep / "2")])
    assert Path("compare.html").is_file()
    report.main([str(sweep / "1"), "--output", "other.html"])
    assert Path("other.html").is_file()
    with pytest.raises(SystemExit, match=r"error: .*failed"):
        report.main([str(sweep / "failed")])


SORTING = """function probe() {
  const header = document.querySelectorAll(".sortable th")[1];
  const names = () => [...document.querySelectorAll("tbody tr")].map(row => row.cells[0].innerText);
  header.firstElementChild.click();
  const rising = names();
  header.firstElementChild.click();
  document.querySelector("circle").dispatchEvent(new Event("mouseenter"));
  document.querySelector(".line").dispatchEvent(new Event("click"));
  return { rising, falling: names(), lines: document.querySelectorAll(".line").length, circles: document.querySelectorAll("circle").length,
    hint: document.getElementById("hint").innerText, command: document.getElementById("command").innerText };
}"""


@pytest.mark.parametrize("width", [1200, 500])
def test_the_comparison_is_drawn_and_sorted_in_a_browser(sweep: Path, browse: Any, width: int) -> None:
    write_comparison(sweep / "compare.html", load_runs([sweep]))
    found = browse(sweep / "compare.html", width, SORTING)
    assert found["console"] == [] and found["drawn"] == [True] * 3 and found["wide"] <= 0
    assert found["falling"] == [str(number) for number in range(11)] == found["rising"][::-1]
    assert (found["lines"], found["circles"]) == (11, 22)
    assert "seed=0" in found["hint"] and found["command"] == "python run.py seed=0 'x='\"'\"'a b'\"'\"''"


@pytest.mark.parametrize("width", [1200, 500])
def test_a_report_is_drawn_in_a_browser(tmp_path: Path, browse: Any, width: int, summary: Any, rows: Any, layers: Any) -> None:
    details = Details([Weights("first", 0.5, [0, 3, 0], [1, 1, 1])], [[7, 2], [0, 9]], (1, 12))
    write_report(tmp_path, summary, rows, layers, {"a": 1}, "python run.py", details)
    found = browse(tmp_path / "report.html", width)
    assert found == {"console": [], "drawn": [True] * 9, "wide": 0}


def test_a_study_is_drawn_in_a_browser(tmp_path: Path, browse: Any) -> None:
    metrics = {"val/accuracy": 0.5, "ebops": 3.0, "sparsity": 0.5}
    point = {"number": 0, "params": {}, "command": "c", "feasible": True, "best": True, "metrics": metrics}
    write_pareto(tmp_path / "pareto.html", "study", [point, point | {"number": 1, "metrics": metrics | {"ebops": 2.0, "val/accuracy": 0.4}}])
    assert browse(tmp_path / "pareto.html") == {"console": [], "drawn": [True, True], "wide": 0}


def test_a_console_error_is_seen(tmp_path: Path, browse: Any) -> None:
    (tmp_path / "bad.html").write_text("<html><script>undefinedName()</script></html>")
    assert "undefinedName" in browse(tmp_path / "bad.html")["console"][0]


@pytest.mark.parametrize("content", ["{", "null", "[1]", ""])
def test_a_damaged_summary_is_named_in_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(SystemExit, match=r"summary.json .*JSON"):
        report.main([str(tmp_path)])
