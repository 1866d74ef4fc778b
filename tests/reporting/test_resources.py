from pathlib import Path

from pquant.reporting import write_report
from pquant.reporting.resources import resource_table


def test_the_report_has_the_resources_of_each_layer(tmp_path: Path, summary: dict, rows: list, layers: list) -> None:
    folder = tmp_path / "export" / "rtl"
    folder.mkdir(parents=True)
    (folder / "resources.csv").write_text("layer,ebops,luts_estimated,luts_yosys\nfirst,1234.5,363.0,402\nadd in 'model',,47.25,0\n")
    assert resource_table(tmp_path) == [
        ["Layer", "EBOPs", "LUTs (estimated)", "LUTs (Yosys)"],
        ["first", "1,234", "363", "402"],
        ["add in 'model'", "-", "47.2", "0"],
    ]
    page = write_report(tmp_path, summary | {"rtl/luts_estimated": 410}, rows, layers, {}, "").read_text()
    assert "Resources by layer" in page and "add in &#39;model&#39;" in page and "402" in page


def test_resources_of_an_earlier_export_are_not_shown(tmp_path: Path, summary: dict, rows: list, layers: list) -> None:
    assert resource_table(tmp_path) == []
    assert "Resources by layer" not in write_report(tmp_path, summary, rows, layers, {}, "").read_text()
