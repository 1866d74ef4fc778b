import torch
from torch import nn

import pquant
from pquant.pruning import Magnitude

from ..formats import EIGHT_BITS


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.last(self.act(self.first(x))))


def lines(capsys) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    return {row[0]: row[1:] for row in cells if row and row[0]}


def test_each_layer_has_its_figures_and_the_last_row_those_of_the_model(capsys):
    model = pquant.compress(Net(), Magnitude(disable_pruning_for_layers=["last"]), EIGHT_BITS, torch.randn(5, 6))
    with torch.no_grad():
        model.first.weight[0] = 0
    pquant.summarize(model)
    rows = lines(capsys)
    ebops = [row["ebops"] for row in pquant.layer_table(model)]
    sparsity = f"{100 * pquant.sparsity(model):.2f} %"
    assert rows["first"] == ["PQDense", "4 x 6", "Magnitude", sparsity, "8", "8", "8", f"{ebops[0]:,.0f}"]
    assert rows["act"][:4] == ["PQActivation", "", "", ""]
    assert rows["last"][2] == "-" and rows["last"][7] == f"{ebops[2]:,.0f}"
    assert rows["all"] == ["", "43", "", sparsity, "", "", "", f"{pquant.ebops(model):,.0f}"]


def test_what_stays_float_is_said_with_an_example(capsys):
    model = pquant.compress(Net())
    pquant.summarize(model, torch.randn(2, 6))
    printed = capsys.readouterr().out
    assert "stays float: " in printed and "sigmoid" in printed


def test_unknown_ebops_are_a_dash_and_a_bare_layer_has_a_row(capsys):
    pquant.summarize(pquant.compress(nn.Conv2d(1, 2, 3), None, EIGHT_BITS))
    rows = lines(capsys)
    assert rows["-"][1] == "2 x 1 x 3 x 3" and rows["-"][-1] == "-" and rows["all"][-1] == ""


def test_a_finalized_model_has_a_table_too(capsys):
    model = pquant.compress(Net(), Magnitude(), EIGHT_BITS, torch.randn(5, 6))
    pquant.summarize(pquant.finalize(model))
    assert lines(capsys)["first"][:3] == ["PQDense", "4 x 6", "-"]
