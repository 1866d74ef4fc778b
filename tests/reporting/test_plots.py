import math
import xml.etree.ElementTree as ElementTree

import pytest

from pquant.reporting.plots import curves, layer_bars, stages


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()) for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_curves_plot_metric_losses_sparsity_and_ebops(rows):
    plots = curves(rows)
    assert [plot.title for plot in plots] == ["Accuracy", "Loss", "Sparsity", "EBOPs"]
    assert "60 %" in texts(plots[0].svg)
    assert {"training", "validation"} <= set(texts(plots[1].svg))


def test_a_budget_has_its_target_and_its_beta(rows):
    plots = curves([row | {"target_ebops": 500.0, "beta": 1e-6 * row["epoch"]} for row in rows])
    assert [plot.title for plot in plots][-2:] == ["EBOPs", "Beta of EBOPs"]
    assert {"reached", "target"} <= set(texts(plots[-2].svg))


def test_curves_go_on_over_epochs_that_were_not_evaluated(rows):
    bare = [row if row["epoch"] % 3 == 0 else {name: row[name] for name in ("stage", "round", "epoch", "train/loss")} for row in rows]
    assert [plot.title for plot in curves(bare)] == ["Accuracy", "Loss", "Sparsity", "EBOPs"]
    ends = [svg.count("\nL ") for svg in (curves(bare)[0].svg, curves(bare[2:3])[0].svg)]
    assert ends[0] > ends[1], "a line joins the epochs that have a value"


def test_stages_are_shaded_and_rounds_marked(rows):
    assert stages(rows) == ["pretrain", "train", "finetune"]
    svg = curves(rows)[0].svg
    assert [svg.count(f"fill: var(--shade-{index})") for index in range(3)] == [1, 2, 1]
    assert svg.count("stroke-dasharray") == 1
    assert "stroke-dasharray" not in curves(rows[:7])[0].svg


def test_plots_take_their_colours_from_the_page_and_load_nothing(rows, layers):
    for plot in [*curves(rows), *layer_bars(layers)]:
        assert plot.svg.startswith("<svg") and "var(--accent)" in plot.svg
        assert "#0" not in plot.svg.replace('href="#', "").replace("url(#", "")
        assert not [line for line in plot.svg.splitlines() if "http" in line and "xmlns" not in line and "www.w3.org" not in line]


def test_plots_are_the_same_each_time(layers):
    assert layer_bars(layers) == layer_bars(layers)


@pytest.mark.parametrize("missing", [None, math.nan, math.inf, "text"])
def test_epochs_without_a_figure_leave_a_gap(rows, missing):
    rows[4]["val/accuracy"] = rows[5]["ebops"] = missing
    del rows[6]["sparsity"]
    assert [plot.title for plot in curves(rows)] == ["Accuracy", "Loss", "Sparsity", "EBOPs"]


def test_one_epoch_no_epoch_and_a_regression():
    assert curves([]) == []
    row = {"stage": "train", "epoch": 1, "val/rmse": 0.5, "train/loss": 1.0, "sparsity": 0.0, "custom": object()}
    assert [plot.title for plot in curves([row])] == ["Rmse", "Loss"]


def test_layer_bars_show_the_layers_that_have_the_figure(layers):
    plots = layer_bars(layers)
    assert [plot.title for plot in plots] == ["Sparsity", "Weight bits", "EBOPs"]
    assert sorted(texts(plots[0].svg)) == ["75.00 %", "75.00 %", "first", "last"]
    assert sorted(texts(plots[1].svg)) == ["6.5", "first"]
    assert sorted(texts(plots[2].svg)) == ["1,234", "first"]
    assert layer_bars([]) == []


def test_layer_names_are_text_not_markup_nor_formulas():
    names = ["<script>x</script>", "$a^{", "a--b&c", "very.long.name.of.a.layer.deep.inside.conv1"]
    shown = texts(layer_bars([{"name": name, "sparsity": 0.5} for name in names])[0].svg)
    assert shown[:3] == names[:3] and shown[3] == "…layer.deep.inside.conv1"[-24:]


def test_a_figure_of_all_zeros_still_has_an_axis():
    assert len(layer_bars([{"name": "a", "sparsity": 0.0, "weight_bits": 0.0}])) == 2


def test_bars_are_as_long_as_their_values():
    svg = layer_bars([{"name": "a", "ebops": 50.0}, {"name": "b", "ebops": 100.0}, {"name": "relu", "ebops": 0.0}])[0].svg
    widths = [float(bar.get("width")) for bar in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}rect")]
    assert len(widths) == 2 and widths[1] == pytest.approx(2 * widths[0], abs=0.1)


def test_large_figures_are_written_in_full(rows):
    for row in rows:
        row["ebops"] = 1e5 * row["epoch"]
    assert [text for text in texts(curves(rows)[3].svg) if text.endswith("00,000")]
