import math

import pytest

from pquant.reporting.headline import HeadlineMetric, headline, label, metric_names, show


def test_headline_shows_each_metric_with_what_to_compare_it_with(summary):
    assert headline(summary) == [
        HeadlineMetric("Accuracy", "76.12 %", "float baseline 76.69 %, -0.57 points"),
        HeadlineMetric("Sparsity", "90.12 %", "of the prunable weights"),
        HeadlineMetric("Parameters left", "431", "of 4,389"),
        HeadlineMetric("Weight bits", "6.25", "mean of the non-zero weights"),
        HeadlineMetric("EBOPs", "5,493"),
        HeadlineMetric("Size", "35.2 kB", "all non-zero parameters, no index"),
        HeadlineMetric("Time", "3 min 07 s", "150 epochs"),
    ]


@pytest.mark.parametrize(
    ("epochs", "planned", "text"), [(1, None, "1 epoch"), (1, 1, "1 epoch"), (1, 3, "1 of 3 epochs"), (3, 3, "3 epochs"), (12, 30, "12 of 30 epochs")]
)
def test_epochs_are_counted(epochs, planned, text):
    given = {"wall_seconds": 1.0, "epochs": epochs} | ({} if planned is None else {"planned_epochs": planned})
    assert [metric.note for metric in headline(given) if metric.label == "Time"] == [text]


def test_headline_of_a_regression_compares_without_points():
    assert headline({"test/loss": 1.0, "test/rmse": 0.01234, "float/rmse": 0.01}) == [HeadlineMetric("Rmse", "0.01234", "float baseline 0.01000")]


def test_headline_leaves_out_what_is_not_known():
    assert headline({}) == []
    assert headline({"sparsity": None, "test/accuracy": None, "test/confusion": [[1]], "ebops": 0.0}) == [HeadlineMetric("EBOPs", "0")]


def test_metric_names_are_the_numbers_of_a_part_but_the_loss():
    assert metric_names({"val/loss": 1, "val/accuracy": 0.5, "test/auc": 1, "val/top_5": 1, "val/note": "x"}, "val") == ["accuracy", "top_5"]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("val/accuracy", 1.0, "100.00 %"),
        ("mask_sparsity", 0.999512, "99.95 %"),
        ("weight_bits", 8.0, "8"),
        ("params", 1234567, "1,234,567"),
        ("size_bytes", 12.4, "12 B"),
        ("size_bytes", 2.5e6, "2.5 MB"),
        ("seconds", 1.26, "1.3 s"),
        ("wall_seconds", 59.99, "60.0 s"),
        ("wall_seconds", 3599.7, "1 h 00 min"),
        ("wall_seconds", 93784, "26 h 03 min"),
        ("loss", 0.5, "0.5000"),
        ("loss", 12345.6, "1.235e+04"),
        ("loss", 1234.4, "1234"),
        ("count", 12345, "12,345"),
        ("accuracy", math.nan, "-"),
        ("loss", None, "-"),
    ],
)
def test_a_metric_is_shown_in_the_unit_of_its_name(name, value, text):
    assert show(name, value) == text


def test_labels_are_words():
    assert [label(name) for name in ("ebops", "weight_bits", "rmse")] == ["EBOPs", "Weight bits", "Rmse"]
