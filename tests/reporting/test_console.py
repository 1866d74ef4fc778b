import io
import re
import sys
from pathlib import Path

import pytest

from pquant.reporting import Console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def train(console: Console, rows: list[dict]) -> None:
    console.start(len(rows))
    for row in rows:
        console.epoch(row)
    console.finish()


@pytest.fixture(autouse=True)
def ordinary_terminal(monkeypatch):
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_plain_lines_have_stage_epoch_and_figures(capsys, rows):
    train(Console("plain"), rows)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "epoch  1/13  pretrain  loss   2.000  accuracy 51.00 %  sparsity  5.00 %  EBOPs     999"
    assert lines[-1].startswith("epoch 13/13  finetune")
    assert len(lines) == len(rows)


@pytest.mark.parametrize("total", [1, 20, 1000, 99999])
def test_a_long_run_has_about_twenty_lines(capsys, rows, total):
    console = Console("auto")
    console.start(total)
    for number in range(1, total + 1):
        stage = "pretrain" if number <= total / 7 else "train" if number <= total / 2 else "finetune"
        console.epoch(rows[0] | {"epoch": number, "stage": stage, "round": number % 5})
    console.finish()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 20 and all(len(line) <= 95 for line in lines)
    numbers = [int(line.split("/")[0].split()[1]) for line in lines]
    assert numbers[0] == 1 and numbers[-1] == total
    if total == 1000:
        assert {143, 501} <= set(numbers)


def test_lines_show_evaluated_epochs(capsys, rows):
    bare = {"stage": "train", "round": 0, "train/loss": 1.0}
    train(Console("plain"), [rows[0] | bare | {"epoch": n} if n % 10 == 0 else bare | {"epoch": n} for n in range(1, 101)])
    lines = capsys.readouterr().out.splitlines()
    assert [int(line.split("/")[0].split()[1]) for line in lines] == [1, *range(10, 101, 10)]
    assert all("EBOPs" in line for line in lines[1:])


def test_a_target_and_its_beta_are_shown(capsys, rows, summary, tmp_path):
    train(Console("plain"), [rows[0] | {"target_ebops": 1000, "beta": 1.25e-6}])
    assert capsys.readouterr().out.rstrip().endswith("EBOPs     999  target   1,000  beta 1.25e-06")
    Console("plain").summary(summary | {"target_ebops": 5500}, tmp_path)
    assert "EBOPs            5,493         of 5,500" in capsys.readouterr().out


def test_a_resumed_run_begins_where_it_is(capsys, rows):
    console = Console("plain")
    console.start(13)
    console.epoch(rows[8])
    assert capsys.readouterr().out.startswith("epoch  9/13  train")


def test_the_last_lines_say_what_came_out_and_where_it_is(capsys, summary, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Console("plain").summary(summary, tmp_path / "outputs" / "run")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "",
        "Accuracy         76.12 %       float baseline 76.69 %, -0.57 points",
        "Sparsity         90.12 %       of the prunable weights",
        "Parameters left  431           of 4,389",
        "Weight bits      6.25          mean of the non-zero weights",
        "EBOPs            5,493",
        "Size             35.2 kB       all non-zero parameters, no index",
        "Time             3 min 07 s    150 epochs",
        f"Files            {Path('outputs/run')}",
    ]


def test_a_long_path_and_marks_are_printed_as_they_are(capsys, tmp_path):
    folder = tmp_path / ("x" * 100) / "[bold]:smile:"
    Console("plain").summary({}, folder)
    assert capsys.readouterr().out.splitlines()[-1] == f"Files            {folder}"


def test_quiet_says_nothing(capsys, rows, summary, tmp_path):
    console = Console("quiet")
    console.note("hello")
    train(console, rows)
    console.summary(summary, tmp_path)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_live_bar(monkeypatch, rows):
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "120")
    console = Console("auto")
    console.note("a [note]")
    train(console, rows)
    console.finish()
    text = sys.stdout.getvalue()
    assert "a [note]" in text and "13/13" in text and "finetune" in text and "63.00 %" in text
    assert re.search(r"\d+:\d\d", text), "the time left"
    assert "epoch 13/13" not in text and "\x1b[" in text


def test_plain_on_a_terminal_draws_no_bar(monkeypatch, rows):
    monkeypatch.setattr(sys, "stdout", Terminal())
    train(Console("plain"), rows)
    assert "\x1b[" not in sys.stdout.getvalue() and "epoch 13/13" in sys.stdout.getvalue()
