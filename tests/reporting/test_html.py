import html
import os
import re
from html.parser import HTMLParser

import pytest
import torch
import yaml

from pquant.reporting import write_report
from pquant.reporting.html import Details
from pquant.reporting.weights import Weights

VOID = {"meta", "br", "img", "link", "input", "hr"}
COMMAND = "python run.py pruning=dst 'note=\"<b>&\"'"


class Page(HTMLParser):
    """Checks that tags are closed in order, and keeps tags with their attributes and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def write(tmp_path, summary, rows, layers):
    def written(**changes):
        arguments = {"summary": summary, "rows": rows, "layers": layers, "config": {"seed": 3}, "command": COMMAND}
        path = write_report(tmp_path, **(arguments | changes))
        assert path == tmp_path / "report.html" and os.listdir(tmp_path) == ["report.html"]
        return path.read_text(encoding="utf-8")

    return written


def test_the_report_has_each_headline_metric(write):
    text = " ".join(Page(write()).texts)
    for metric in ("76.12 %", "float baseline 76.69 %, -0.57 points", "90.12 %", "431", "of 4,389", "6.25", "5,493", "35.2 kB", "3 min 07 s"):
        assert metric in text
    assert "76.12\u00a0%\u00a0accuracy, 90.12\u00a0%\u00a0sparse, 6.25\u00a0bits\u00a0per\u00a0weight" in text


def test_the_report_has_layers_environment_command_and_config(write):
    config = {"model": {"_target_": "pquant.models.MLP", "hidden": [64, 32]}, "note": "${unfinished", "seed": 3}
    page = Page(write(config=config))
    for shown in ("first", "5 × 16", "75.00 %", "1,234", "0123456789ab", "2.6.0", "MLP", COMMAND):
        assert shown in page.texts
    assert page.texts.count("float") == 5
    shown = next(text for text in page.texts if "_target_" in text)
    assert yaml.safe_load(shown) == config


def test_nothing_that_comes_in_is_markup(write, rows, layers, summary):
    evil = "</pre></script><script>alert(1)</script><img src=x onerror=alert(1)>"
    layers[0] |= {"name": evil, "type": evil, "shape": [evil]}
    for row in rows:
        row |= {f"val/{evil}": 0.5, "stage": evil}
    summary |= {evil: evil, f"test/{evil}": 0.5, f"version/{evil}": evil}
    text = write(config={evil: evil, "model": {"_target_": evil}}, command=evil)
    assert "<script" not in text and "<img" not in text
    assert html.escape(evil) in text
    assert not [name for _, attributes in Page(text).tags for name in attributes if name.startswith("on")]


def test_the_page_needs_nothing_else(write):
    text = write()
    tags = Page(text).tags
    assert not {"link", "script", "iframe", "object", "img"} & {tag for tag, _ in tags}
    references = [value for _, attributes in tags for name, value in attributes.items() if name in ("src", "href", "xlink:href")]
    assert all(value.startswith("#") for value in references)
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    assert set(re.findall(r"var\((--[\w-]+)\)", text)) <= set(re.findall(r"(--[\w-]+):", text))


def test_tensors_numbers_that_are_not_finite_and_unknown_keys_are_fine(write, rows, summary, layers):
    summary |= {"ebops": float("nan"), "new": torch.tensor(3), "list": [1, None], "test/confusion": [[1, 2]]}
    rows[0] |= {"val/accuracy": torch.tensor(0.5), "val/loss": float("inf")}
    layers[0]["sparsity"] = float("nan")
    text = " ".join(Page(write()).texts)
    assert "confusion" in text and "5,493" not in text


def test_a_run_without_epochs_layers_or_metrics_has_a_page(write):
    page = Page(write(summary={}, rows=[], layers=[], config={}))
    assert "A run of pquant" in page.texts
    assert not [tag for tag, _ in page.tags if tag == "svg"]


def test_the_report_shows_weights_confusion_and_what_was_exported(write, summary):
    details = Details([Weights("<conv>", 0.5, [0, 3, 0], [1, 1, 1])], [[7, 2], [0, 9]])
    summary |= {"rtl/luts_estimated": 1234, "rtl/bit_exact": True, "rtl/simulator": "verilator", "onnx/bit_exact": False}
    page = Page(write(details=details))
    shown = {text.strip() for text in page.texts}
    assert {"<conv>", "RTL", "LUTs (estimated)", "1,234", "verilator", "yes", "ONNX", "no", "7", "9"} <= shown
    assert [attributes["style"] for tag, attributes in page.tags if tag == "td" and "style" in attributes] == [
        "--share: 77.8%",
        "--share: 22.2%",
        "--share: 0.0%",
        "--share: 100.0%",
    ]


def test_many_classes_are_shown_by_their_mistakes(write):
    table = [[0] * 100 for _ in range(100)]
    table[41][17] = 12
    assert {"41 taken for 17", "12 times"} <= set(Page(write(details=Details(confusion=table))).texts)


def test_the_archive_is_shown_by_the_epochs_that_it_keeps(write):
    assert "Pareto archive" not in Page(write()).texts
    page = Page(write(details=Details(archived=(3, 9))))
    assert {"Pareto archive", "Accuracy against EBOPs", "3", "9"} <= set(page.texts)


def test_the_confusion_matrix_has_the_names_of_the_classes(write):
    texts = Page(write(details=Details(confusion=[[3, 1], [0, 2]], classes=("gluon", "<b>top"))))
    assert texts.texts.count("gluon") == 2 and texts.texts.count("<b>top") == 2
    many = [[0] * 50 for _ in range(50)]
    many[41][17] = 12
    assert "jet 41 taken for jet 17" in Page(write(details=Details(confusion=many, classes=[f"jet {number}" for number in range(50)]))).texts
