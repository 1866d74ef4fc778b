from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pquant import report
from pquant.errors import ConfigError
from pquant.reporting.luts import fit_luts, write_luts
from pquant.tracking.files import write_json


def metrics(ebops: float, luts: float, **more: float) -> dict[str, Any]:
    return {"ebops": ebops, "rtl/luts_estimated": luts} | more


def test_the_line_of_least_squares_and_its_residuals() -> None:
    fit = fit_luts([0, 1, 2, 3], [1, 3, 5, 8])
    assert (fit.slope, fit.intercept) == pytest.approx((2.3, 0.8))
    assert fit.residuals.tolist() == pytest.approx([0.2, -0.1, -0.4, 0.3])
    assert fit.r_squared == pytest.approx(1 - 0.3 / np.square(np.array([1, 3, 5, 8]) - 4.25).sum())


@pytest.mark.parametrize(("ebops", "luts"), [([1, 2], [3, 4]), ([], []), ([5, 5, 5], [1, 2, 3])])
def test_too_few_exports_are_refused(ebops: list[float], luts: list[float]) -> None:
    with pytest.raises(ConfigError, match=f"at least 3 exports that differ in EBOPs, got {len(ebops)} with"):
        fit_luts(ebops, luts)


def test_the_page_has_the_line_a_plot_and_every_export(tmp_path: Path) -> None:
    exports = {f"run <{number}>": metrics(1000.0 * number, 500 * number + 100) for number in (1, 2, 3)} | {"float": {"ebops": 7.0}}
    assert write_luts(tmp_path, "a <study>", exports)
    page = (tmp_path / "luts.html").read_text()
    assert "LUTs (estimated) = 0.5 · EBOPs + 100" in page and "a &lt;study&gt;" in page and "<study>" not in page
    assert page.count("<svg") == 2 and page.count("<tr><td>") == 3
    assert all(f"run &lt;{number}&gt;" in page for number in (1, 2, 3)) and "1,600" in page


def test_the_count_of_yosys_is_used_where_all_exports_have_it(tmp_path: Path) -> None:
    exports = {str(number): metrics(number, number, **{"rtl/luts_yosys": 2 * number}) for number in (1, 2, 4)}
    write_luts(tmp_path, "all", exports)
    assert "LUTs (Yosys) = 2 ·" in (tmp_path / "luts.html").read_text()
    write_luts(tmp_path, "some", exports | {"large": metrics(8, 8)})
    assert "LUTs (estimated) = 1 ·" in (tmp_path / "luts.html").read_text()


def test_no_page_of_two_exports(tmp_path: Path) -> None:
    assert not write_luts(tmp_path, "two", {"a": metrics(1, 1), "b": metrics(2, 2), "c": {}})
    assert not (tmp_path / "luts.html").exists()


def test_the_command_that_compares_runs_writes_the_page_or_says_why_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2, 3):
        (tmp_path / str(number)).mkdir()
        write_json(tmp_path / str(number) / "summary.json", {"val/accuracy": 0.5} | metrics(number, number))
    report.main([str(tmp_path)])
    assert f"LUTs of 3 exports fitted to their EBOPs in {tmp_path / 'luts.html'}" in capsys.readouterr().out
    report.main([str(tmp_path / "1"), str(tmp_path / "2"), "--output", str(tmp_path / "two.html")])
    assert "no fit of LUTs to EBOPs: it needs 3 exports that differ in EBOPs, and 2 of the runs have LUTs" in capsys.readouterr().out
