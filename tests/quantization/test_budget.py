"""A budget of EBOPs: the controller on responses that are made up, and in models and runs."""

import copy
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pquant
from pquant.errors import ConfigError
from pquant.fitcompress import FITCompress
from pquant.layers import PQDense
from pquant.layers.base import QuantizedLayer
from pquant.layers.queries import ebops_budget
from pquant.pruning import DST, NoPruning
from pquant.quantization import Quantization
from pquant.quantization.budget import EbopsBudget, Use
from pquant.resume import Run
from pquant.training import Training

from ..test_config import build

BITS = {
    "default_data_keep_negatives": True,
    "default_data_integer_bits": 2,
    "default_data_fractional_bits": 4,
    "default_weight_keep_negatives": True,
    "default_weight_fractional_bits": 6,
}
HGQ = BITS | {"use_hgq": True, "granularity": "per_weight"}
START, EPOCHS, STEPS = 100_000.0, 60, 10


class Response:
    """A made-up network with one width b, of EBOPs START (b / 8)^2 and a task's loss 4^-b.

    An optimizer like Adam moves the width by ``lr`` bits a step, or less where the gradient is smaller than its ``noise``.
    """

    def __init__(self, lr: float, noise: float, least: float = 0.1) -> None:
        self.lr, self.noise, self.least, self.bits = lr, noise, least, 8.0

    def step(self, budget: EbopsBudget) -> None:
        """Follow the beta of one step."""
        bits = torch.tensor(self.bits, requires_grad=True)
        (4**-bits + budget.cost(self._trained(bits))).backward()
        assert bits.grad is not None
        self.bits = max(self.bits - self.lr * math.tanh(float(bits.grad) / self.noise), self.least)

    def _trained(self, bits: torch.Tensor) -> torch.Tensor:
        return 1.5 * START * (bits / 8) ** 2

    def use(self) -> Use:
        """Return the use now: trained widths count half as much again as finalized weights."""
        trained = float(self._trained(torch.tensor(self.bits)))
        return Use(trained / 1.5, self.bits, trained)


def held(target: float, response: Response, beta: float = 0.0) -> tuple[EbopsBudget, list[float]]:
    """Return the controller after a run on a response, and the EBOPs of each epoch."""
    budget, found = EbopsBudget(target, beta), []
    budget.begin(Use(START, 8.0, 1.5 * START), 0.7 * EPOCHS)
    budget.announce(START)
    for _ in range(EPOCHS):
        for _ in range(STEPS):
            response.step(budget)
        found.append(response.use().ebops)
        budget.follow(response.use())
    return budget, found


@pytest.mark.parametrize("target", [5000, 10_000, 30_000])
@pytest.mark.parametrize("lr", [0.03, 0.04, 0.05])
@pytest.mark.parametrize("noise", [0.03, 0.1, 1.0])
def test_a_target_is_reached_in_time_and_held(target: int, lr: float, noise: float) -> None:
    _, found = held(target, Response(lr, noise))
    late = [ebops / target for ebops in found[int(0.7 * EPOCHS) + 6 :]]
    assert max(late) < 1.05 and min(late) > 0.95
    assert all(ebops > 0.8 * target for ebops in found)


def test_bits_that_follow_the_plan_too_late_come_to_the_target_in_the_end() -> None:
    _, found = held(5000, Response(0.025, 0.1))
    assert found[EPOCHS // 3] > 2 * found[EPOCHS // 2] and found[-1] == pytest.approx(5000, rel=0.05)


def test_the_start_beta_is_the_one_that_is_given_as_long_as_it_cannot_ruin_the_model(caplog: pytest.LogCaptureFixture) -> None:
    def start(beta: float) -> float:
        budget = EbopsBudget(5000, beta)
        budget.begin(Use(START, 8.0, START), 1e6)
        budget.announce(START)
        return float(budget.beta)

    assert start(3e-7) == pytest.approx(3e-7, rel=0.01)
    assert start(0.0) == pytest.approx(0, abs=1e-9)
    assert not caplog.text
    assert start(1.0) == pytest.approx(1 / START, rel=0.01)
    assert "hgq_beta = 1 would give a loss term of 1e+05 at the start: beta starts at 1e-05" in caplog.text


def test_a_budget_that_is_not_needed_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    budget = EbopsBudget(2 * START)
    with caplog.at_level(logging.INFO):
        budget.begin(Use(START, 8.0, START), 10)
        budget.announce(START)
        betas = [float(budget.beta)]
        for _ in range(20):
            budget.follow(Use(START, 6.0, START))
            betas.append(float(budget.beta))
        budget.report(START)
    assert betas == [0.0] * 21
    assert "the budget is not needed" in caplog.text and "50.0 % fewer: the budget was not needed" in caplog.text
    budget.follow(Use(3 * START, 8.0, 3 * START))
    assert budget.beta > 0, "what grows beyond it is held"


def test_a_target_out_of_reach_is_told_with_what_was_reached(caplog: pytest.LogCaptureFixture) -> None:
    budget, found = held(100, Response(0.05, 0.1, least=8 * math.sqrt(0.007)))
    assert found[-1] == pytest.approx(700) and math.isfinite(budget.beta)
    budget.report(found[-1])
    assert "the target of 100 EBOPs is missed: the final model has 700, 600.0 % more; train longer" in caplog.text


def test_a_target_that_is_held_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    budget, _ = held(5000, Response(0.05, 0.1))
    with caplog.at_level(logging.INFO):
        budget.report(5249)
    assert not caplog.records


def test_what_pruning_took_is_bought_back_until_it_is_there() -> None:
    budget, _ = held(5000, Response(0.05, 0.1))
    betas = []
    for ebops in (3000, 3000, 5500):
        budget.follow(Use(ebops, 4.0, ebops))
        betas.append(float(budget.beta))
    assert betas[0] < 0 and betas[1] < 0 < betas[2]
    budget.follow(Use(3000, 7.9, 3000))
    assert budget.beta == 0, "a weight gets no more bits than it had"


def test_it_goes_on_from_its_state() -> None:
    budget, response = EbopsBudget(5000), Response(0.05, 0.1)
    budget.begin(response.use(), 20)
    for _ in range(7):
        response.step(budget)
        budget.follow(response.use())
    other = EbopsBudget(5000)
    other.load_state_dict(budget.state_dict())
    for ebops in (9000.0, 7000.0, 4000.0):
        for one in (budget, other):
            one.follow(Use(ebops, 4.0, 1.2 * ebops))
        assert budget.beta == other.beta != 0
        assert budget.cost(torch.tensor(8000.0)) == other.cost(torch.tensor(8000.0)) != 0


def model(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    return pquant.compress(net, DST(alpha=0.0), Quantization(**(HGQ | {"target_ebops": 500} | changes)), torch.randn(4, 8))


def test_the_stages_and_epochs_of_a_model_move_its_beta() -> None:
    net = model()
    betas = []
    for stage, epochs in ((pquant.Stage.PRETRAIN, 1), (pquant.Stage.TRAIN, 3), (pquant.Stage.FINETUNE, 2)):
        pquant.set_stage(net, stage, pquant.Horizon(epochs=3, steps_per_epoch=1))
        for _ in range(epochs):
            betas.append(float(ebops_budget(net).beta))
            pquant.on_epoch_end(net)
    assert betas[0] == 0, "nothing is asked for before the train stage"
    assert betas == sorted(betas) and betas[1] > 0, "EBOPs stay where they are, so the beta rises"
    assert float(pquant.penalty(net).detach()) > 0
    assert ebops_budget(pquant.finalize(net)) is None


def test_all_layers_hold_one_budget_also_in_a_copy() -> None:
    for net in (model(), copy.deepcopy(model())):
        layers = [layer for layer in net.modules() if isinstance(layer, QuantizedLayer)]
        assert len(layers) == 3 and {layer.regularization.budget for layer in layers} == {ebops_budget(net)}


def test_layers_made_by_hand_follow_the_first_budget() -> None:
    quantization = Quantization(**(HGQ | {"target_ebops": 100}))
    net = nn.Sequential(PQDense(8, 8, quantization=quantization, name="0"), PQDense(8, 2, quantization=quantization, name="1"))
    pquant.set_stage(net, pquant.Stage.TRAIN, pquant.Horizon(epochs=3, steps_per_epoch=1))
    for _ in range(2):
        pquant.on_epoch_end(net)
    assert ebops_budget(net).beta > 0 and float(pquant.penalty(net).detach()) > 0


def test_what_pruning_asks_for_is_forgotten_when_it_ends() -> None:
    budget, _ = held(5000, Response(0.05, 0.1))
    for _ in range(20):
        budget.follow(Use(4500, 4.0, 4500))
    assert budget.cost(torch.tensor(5000.0)) < 0 < budget.cost(torch.tensor(5250.0))


def test_what_pruning_takes_each_epoch_is_bought_back_as_long_as_it_takes_it() -> None:
    budget, _ = held(5000, Response(0.05, 0.1))
    for _ in range(20):
        budget.follow(Use(4500, 4.0, 4500), before=4700)
    during = float(budget.integral)
    budget.follow(Use(4900, 4.0, 4900), before=4900)
    assert -0.5 < during < -0.4 and float(budget.integral) == pytest.approx(-0.1)


def test_the_train_stage_needs_its_length() -> None:
    with pytest.raises(ConfigError, match="target_ebops needs the length of the train stage"):
        pquant.set_stage(model(), pquant.Stage.TRAIN)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_ebops": 0}, r"Quantization.target_ebops must be in \[1, inf\), got 0"),
        ({"target_ebops": 1.5}, "Quantization.target_ebops must be an integer or null, got 1.5"),
        ({"target_ebops": 500, "use_hgq": False}, "target_ebops must be null for fixed bits, .* quantization=hgq, or fitcompress=on"),
        ({"target_ebops": 500, "hgq_beta_schedule": [[0, 1e-6]]}, "hgq_beta_schedule must be empty with target_ebops"),
        ({"target_luts": 500, "use_hgq": False}, "target_luts must be null for fixed bits"),
        ({"target_luts": 500, "target_ebops": 500}, "target_luts must be null beside target_ebops = 500"),
        ({"target_luts": 500, "hgq_beta_schedule": [[0, 1e-6]]}, "hgq_beta_schedule must be empty with target_luts"),
        ({"target_luts": 0}, r"Quantization.target_luts must be in \[1, inf\), got 0"),
        ({"target_share": 0}, r"Quantization.target_share must be in \(0, 1\], got 0"),
        ({"target_share": 1.5}, r"Quantization.target_share must be in \(0, 1\], got 1.5"),
    ],
)
def test_what_does_not_go_with_a_target_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Quantization(**(HGQ | fields))


def test_fitcompress_refuses_a_target() -> None:
    with pytest.raises(ConfigError, match="FITCompress searches fixed bits, which no target of EBOPs .Quantization.target_ebops"):
        FITCompress(enable_fitcompress=True).check(NoPruning(), Quantization(**HGQ, target_ebops=500), Training())


def test_look_up_tables_are_ebops_by_the_published_line() -> None:
    net = model(target_ebops=None, target_luts=635)
    budget = ebops_budget(net)
    assert budget.target == pytest.approx(1000) and 0.704 * budget.target - 69 == pytest.approx(635)


SHORT = ["quantization=hgq", "quantization.hgq_beta=0", "progress=quiet"]


@pytest.mark.slow
@pytest.mark.parametrize("target", [6000, 20_000])
@pytest.mark.parametrize("pruning", ["none", "dst", "pdp", "wanda", "mdmm", "cs", "autosparse", "activation_pruning"])
def test_a_run_on_digits_ends_at_its_target(pruning: str, target: int, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    experiment = build(*SHORT, f"pruning={pruning}", f"quantization.target_ebops={target}")
    summary = experiment.run(Run(tmp_path, {}, ""))
    assert summary["target_ebops"] == target and abs(summary["ebops"] / target - 1) <= 0.05
    assert "Beta of EBOPs" in (tmp_path / "report.html").read_text()
