"""The page of a study's trials."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pquant.reporting.pareto import front, write_pareto

PLACES = st.lists(st.tuples(st.integers(0, 6).map(float), st.integers(0, 6).map(float)), max_size=12)


def point(number: int, accuracy: float, ebops: float, **more: Any) -> dict[str, Any]:
    metrics = {"val/accuracy": accuracy, "ebops": ebops, "sparsity": 0.5}
    command = f"python run.py 'pruning.note=<b>{number}'"
    return {
        "number": number,
        "params": {"pruning.note": "<b>x</b>"},
        "command": command,
        "feasible": True,
        "best": number == 0,
        "metrics": metrics,
    } | more


def plots(page: str) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads(re.search(r"const plots = (.*);", page).group(1))  # type: ignore[union-attr]
    return loaded


@given(PLACES, st.sampled_from(["minimize", "maximize"]), st.sampled_from(["minimize", "maximize"]))
def test_the_front_is_what_nothing_surpasses(places: list[tuple[float, float]], x: str, y: str) -> None:
    signs = [1 if direction == "minimize" else -1 for direction in (x, y)]
    costs = [(signs[0] * a, signs[1] * b) for a, b in places]
    unsurpassed = {cost for cost in costs if not any(a <= cost[0] and b <= cost[1] and (a, b) != cost for a, b in costs)}
    found = front(places, x, y)
    assert {costs[index] for index in found} == unsurpassed and len(found) == len(unsurpassed)
    assert [places[index][0] for index in found] == sorted(places[index][0] for index in found)


def test_the_page_has_every_point_with_its_command_and_needs_nothing_else(tmp_path: Path) -> None:
    points = [point(0, 0.9, 100.0), point(1, 0.8, 50.0), point(2, 0.7, 60.0), point(3, 0.99, 10.0, feasible=False)]
    write_pareto(tmp_path / "pareto.html", "a <study>", points)
    page = (tmp_path / "pareto.html").read_text()
    against_ebops, against_sparsity = plots(page)
    assert [one["command"] for one in against_ebops["points"]] == [one["command"] for one in points]
    assert against_ebops["front"] == [1, 0] and against_sparsity["front"] == [0]
    assert "pruning.note=<b>x</b>" in against_ebops["points"][0]["lines"] and "EBOPs: 100" in against_ebops["points"][0]["lines"]
    assert "<b>" not in page and "a &lt;study&gt;" in page
    assert not re.search(r"""(src|href)=|url\(|@import|https?://(?!www\.w3\.org/2000/svg)""", page)


@pytest.mark.parametrize("points", [[], [{**point(0, 0.9, 1.0), "metrics": {}}]])
def test_a_study_without_figures_says_so(points: list[dict[str, Any]], tmp_path: Path) -> None:
    write_pareto(tmp_path / "pareto.html", "empty", points)
    assert "No trial is complete yet" in (tmp_path / "pareto.html").read_text()
