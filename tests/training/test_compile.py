"""When steps are compiled, and what that decision rests on."""

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pquant
from pquant.errors import ConfigError
from pquant.pruning import Wanda
from pquant.quantization import Quantization
from pquant.training import compile as compiling
from pquant.training.compile import TIMED, WARM_UP, StepCompiler, missing_to_compile

CPU, GPU = torch.device("cpu"), torch.device("cuda")
FIXED = Quantization(
    default_weight_keep_negatives=True, default_weight_fractional_bits=3, default_data_integer_bits=2, default_data_fractional_bits=2
)


def compiler(mode: Any = "auto", graphs: int = 2, steps: int = 1000, model: nn.Module | None = None) -> StepCompiler:
    model = model or pquant.compress(nn.Linear(3, 2), None, FIXED)

    def losses(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (model(x) - y).square().mean(), torch.zeros(())

    return StepCompiler(losses, model, mode, CPU, lambda: (graphs, steps))


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """Let the compiler run its graphs as they are, and return them."""
    made: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        made.append(graph)
        return graph.forward

    def compile(call: Callable[..., Any], dynamic: bool, options: dict[str, Any]) -> Callable[..., Any]:
        assert dynamic is False and options == compiling.COMPUTED_ONCE
        return partial(torch._dynamo.optimize(backend, dynamic=False)(call))

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", compile)
    return made


@pytest.mark.parametrize(("steps", "seconds", "compiled"), [(10**6, 1e-3, True), (1000, 1e-3, False), (10**6, 1e-6, False), (0, 1.0, False)])
def test_it_compiles_where_the_steps_left_save_more_than_it_costs(
    steps: int, seconds: float, compiled: bool, caplog: pytest.LogCaptureFixture
) -> None:
    one = compiler(steps=steps)
    with caplog.at_level(logging.INFO):
        one.decide(seconds)
    assert one.compiled is compiled
    (line,) = caplog.messages
    assert line.startswith("steps are compiled" if compiled else "steps stay eager") and f"{steps} left" in line


def test_more_stages_and_more_layers_cost_more() -> None:
    steps, seconds = 10_000, 2 * (compiling.SECONDS_PER_GRAPH + compiling.SECONDS_PER_LAYER) / (10_000 * compiling.SAVED) * 1.01
    decisions = []
    for one in (compiler(steps=steps), compiler(steps=steps, graphs=3)):
        one.decide(seconds)
        decisions.append(one.compiled)
    deep = compiler(steps=steps, model=pquant.compress(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), None, FIXED))
    deep.decide(seconds)
    assert [*decisions, deep.compiled] == [True, False, False]


def test_the_first_steps_are_timed_and_then_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    one, decided = compiler(), list[float]()
    monkeypatch.setattr(one, "decide", lambda seconds: decided.append(seconds) or setattr(one, "compiled", False))
    made: list[int] = []
    for _ in range(WARM_UP + TIMED + 5):
        assert bool(decided) == (len(made) >= WARM_UP + TIMED)
        with one.timed():
            made.append(1)
    assert len(made) == WARM_UP + TIMED + 5 and len(decided) == 1 and 0 < decided[0] < 1


def test_one_graph_takes_batches_of_all_sizes_but_one(graphs: list[torch.fx.GraphModule]) -> None:
    one, eager = compiler(mode=True), list[int]()
    losses, one.losses = one.losses, lambda x, y: losses(x, y) if torch.compiler.is_compiling() else eager.append(len(x)) or losses(x, y)
    for examples in (8, 8, 3, 5, 1, 8):
        x, y = torch.randn(examples, 3), torch.randn(examples, 2)
        assert torch.equal(one(x, y)[0], losses(x, y)[0])
    assert len(graphs) == 1 and eager == [1]


def test_steps_in_which_pruners_look_at_activations_stay_eager(graphs: list[torch.fx.GraphModule]) -> None:
    model = pquant.compress(nn.Linear(3, 2), Wanda(sparsity=0.5, t_start_collecting_batch=1, t_delta=2), FIXED)
    pquant.set_stage(model, pquant.Stage.TRAIN, pquant.Horizon(1, 6))
    one, counts = compiler(mode=True, model=model.train()), []
    for _ in range(6):
        one(torch.randn(8, 3), torch.randn(8, 2))
        pquant.on_batch_end(model)
        counts.append((len(graphs), int(model.pruner.seen)))
    assert counts == [(1, 0), (1, 1), (1, 2), (1, 2), (1, 2), (1, 2)], "one graph, which does not change with the mask"


def test_auto_falls_back_where_compiling_fails(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no such kernel\nand more")

    monkeypatch.setattr(torch, "compile", lambda call, **_: broken)
    one = compiler()
    one.compiled = True
    x, y = torch.randn(8, 3), torch.randn(8, 2)
    assert torch.equal(one(x, y)[0], one.losses(x, y)[0]) and one.compiled is False
    assert caplog.messages == ["steps stay eager: compiling failed with RuntimeError: no such kernel"]
    asked = compiler(mode=True)
    with pytest.raises(RuntimeError, match="no such kernel"):
        asked(x, y)


def test_a_resumed_run_keeps_the_decision() -> None:
    for decision in (True, False):
        one, other = compiler(), compiler()
        one.compiled = decision
        other.load_state_dict(one.state_dict())
        assert other.compiled is decision
    asked = compiler(mode=False)
    asked.load_state_dict({"compiled": True, "timed": []})
    assert asked.compiled is False


def test_a_resumed_run_decides_in_the_same_step() -> None:
    whole, first, second = compiler(steps=10**6), compiler(steps=10**6), compiler(steps=10**6)
    for number in range(WARM_UP + TIMED):
        if number == 7:
            second.load_state_dict(first.state_dict())
        for one in (whole, first if number < 7 else second):
            assert one.compiled is None
            with one.timed():
                time.sleep(1e-4)
    assert whole.compiled is second.compiled is True


@pytest.mark.parametrize(
    ("capability", "compiler", "triton", "missing"),
    [
        ((6, 1), "/usr/bin/gcc", True, "GPU of compute capability 7.0"),
        ((9, 0), None, True, "C compiler such as gcc"),
        ((9, 0), "/usr/bin/gcc", False, "Triton"),
        ((9, 0), "/usr/bin/gcc", True, None),
    ],
)
def test_what_triton_takes_is_asked_for(
    capability: tuple[int, int], compiler: str | None, triton: bool, missing: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(compiling, "find_spec", lambda name: name if triton else None)
    monkeypatch.setattr(compiling, "which", lambda name: compiler)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    found = missing_to_compile(GPU)
    assert found is None if missing is None else found is not None and found.startswith(missing)


def test_without_a_compiler_auto_stays_eager_and_asking_is_an_error(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: 1 / 0)
    one = compiler(steps=10**6)
    with caplog.at_level(logging.INFO):
        one.decide(1.0)
    assert one.compiled is False and caplog.messages[0].endswith("but there is no C++ compiler such as g++")
    one.load_state_dict({"compiled": True, "timed": []})
    assert one.compiled is False and "the last bits of its results may differ" in caplog.messages[1]
    with pytest.raises(ConfigError, match="Training.compile must be false where there is no C\\+\\+ compiler"):
        compiler(mode=True)
