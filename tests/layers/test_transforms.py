"""Nothing lives only while the model's forward runs: checkpoints, parts called by themselves, vmap, export, copies and compiled graphs."""

import copy
import io
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import pquant
from pquant.layers import QuantizedLayer
from pquant.metrics import Penalty
from pquant.pruning import CS, DST, MDMM, PDP, ActivationPruning, AutoSparse, Magnitude, NoPruning, PruningMethod, Wanda
from pquant.quantization import Quantization

BITS = {
    "default_data_keep_negatives": True,
    "default_data_integer_bits": 2,
    "default_data_fractional_bits": 3,
    "default_weight_keep_negatives": True,
    "default_weight_fractional_bits": 5,
}
SECTIONS = {
    "fixed": Quantization(**BITS),
    "fixed by channel": Quantization(**BITS, granularity="per_channel", pruning_first=False, use_relu_multiplier=False),
    "trained": Quantization(**BITS, use_hgq=True, hgq_beta=1e-5, hgq_gamma=1e-6, granularity="per_weight", data_granularity="per_channel"),
    "trained, outputs float": Quantization(**BITS, use_hgq=True, hgq_beta=1e-5, quantize_output=False, overflow_mode_parameters="SAT_SYM"),
}
METHODS: list[PruningMethod] = [
    CS(threshold_decay=1e-3),
    DST(threshold_init=0.05, alpha=1e-3),
    PDP(sparsity=0.5, epsilon=1.0),
    Wanda(sparsity=0.5, t_start_collecting_batch=1, t_delta=2),
    AutoSparse(threshold_init=-2.0, alpha_reset_epoch=3, autotune_epochs=0),
    ActivationPruning(threshold=0.4, t_start_collecting_batch=1, t_delta=2),
    MDMM(target_sparsity=0.5),
    Magnitude(sparsity=0.5),
]
each_section = pytest.mark.parametrize("section", SECTIONS)
two_sections = pytest.mark.parametrize("section", ["fixed", "trained"])
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
few_methods = pytest.mark.parametrize("method", [NoPruning(), METHODS[1], METHODS[2]], ids=lambda method: type(method).__name__)


class Net(nn.Module):
    """Two blocks, which may be run under checkpoints, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8, bias=False)) for _ in range(2)])
        self.act, self.head = nn.Tanh(), nn.Linear(8, 3)
        self.checkpoints = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        for block in self.blocks:
            x = x + (checkpoint(block, x, use_reentrant=False) if self.checkpoints else block(x))
        return self.head(x)


def x_of(seed: int = 0) -> Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))


def refused(method: PruningMethod, section: str) -> bool:
    return method.rescales and not SECTIONS[section].pruning_first


def made(method: PruningMethod, section: str, seed: int = 0) -> nn.Module:
    if refused(method, section):
        pytest.skip("refused: the method rescales what it keeps")
    torch.manual_seed(seed)
    return pquant.compress(Net(), method, SECTIONS[section], x_of())


def steps(model: nn.Module, count: int = 3) -> None:
    optimizer = torch.optim.SGD(pquant.parameter_groups(model), 0.02)
    for _ in range(count):
        optimizer.zero_grad()
        (model.train()(x_of()).square().mean() + pquant.penalty(model)).backward()
        optimizer.step()
        pquant.on_batch_end(model)
    optimizer.zero_grad()


def in_training(method: PruningMethod, section: str) -> nn.Module:
    """Return a model that has made a few steps of the train stage."""
    model = made(method, section)
    pquant.set_stage(model, pquant.Stage.TRAIN, pquant.Horizon(2, 3))
    steps(model)
    return model.train()


def differentiated(model: nn.Module, call: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the output for one batch, and the gradients of everything."""
    model.zero_grad()
    x = x_of(1).requires_grad_()
    y = (model if call is None else call)(x)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    assert x.grad is not None
    grads = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    return y.detach(), {**grads, "x": x.grad}


def same(one: tuple[Tensor, dict[str, Tensor]], other: tuple[Tensor, dict[str, Tensor]]) -> None:
    assert torch.equal(one[0], other[0]) and one[1].keys() == other[1].keys()
    for name, grad in one[1].items():
        torch.testing.assert_close(grad, other[1][name], rtol=1e-5, atol=1e-6, msg=name)


@two_sections
@each_method
def test_checkpointed_blocks_have_the_same_gradients(method: PruningMethod, section: str) -> None:
    model = in_training(method, section)
    for stage in (None, pquant.Stage.FINETUNE):
        if stage is not None:
            pquant.set_stage(model, stage)
        plain = differentiated(model)
        model.checkpoints = True
        same(differentiated(model), plain)
        model.checkpoints = False


def calls(model: nn.Module, layers: dict[str, nn.Module]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return what each layer is given and gives in one forward of the model."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    handles = [
        layer.register_forward_hook(lambda _, given, y, name=name: seen.update({name: (given[0].detach().clone(), y.detach().clone())}))
        for name, layer in layers.items()
    ]
    model(x_of(1))
    for handle in handles:
        handle.remove()
    return seen


@two_sections
@each_method
def test_a_layer_called_by_itself_gives_what_it_gives_inside_the_model(method: PruningMethod, section: str) -> None:
    model = in_training(method, section)
    for training in (True, False):
        model.train(training)
        layers = {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLayer)}
        seen = calls(model, layers)
        assert seen.keys() == layers.keys()
        for name, (given, y) in seen.items():
            assert torch.equal(layers[name](given), y), name
            assert torch.equal(copy.deepcopy(layers[name])(given), y), f"a copy of {name}"


@each_section
@few_methods
def test_parts_put_together_by_others_have_the_models_gradients(method: PruningMethod, section: str) -> None:
    model = in_training(method, section)

    def by_hand(x: Tensor) -> Tensor:
        x = model.act(model.stem(x))
        for first, act, last in model.blocks:
            x = x + last(act(first(x)))
        return model.head(x)

    same(differentiated(model, by_hand), differentiated(model))
    same(differentiated(model, nn.Sequential(nn.Identity(), model)), differentiated(model))


@few_methods
@each_section
def test_a_failed_forward_leaves_nothing_behind(method: PruningMethod, section: str) -> None:
    model = in_training(method, section)
    before = differentiated(model)
    with pytest.raises(RuntimeError):
        model(torch.randn(8, 5))
    same(differentiated(model), before)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    halved = differentiated(model)
    assert not torch.equal(halved[0], before[0]), "and weights changed in place are seen"
    same(differentiated(copy.deepcopy(model)), halved)


@few_methods
@each_section
def test_two_forwards_before_a_backward_have_the_gradients_of_both(method: PruningMethod, section: str) -> None:
    model = in_training(method, section)

    def summed(together: bool) -> dict[str, Tensor]:
        model.zero_grad()
        losses = (model(x_of(seed)).square().sum() for seed in (1, 2))
        for loss in [sum(losses)] if together else losses:
            loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}

    for (name, one), other in zip(summed(True).items(), summed(False).values(), strict=True):
        torch.testing.assert_close(one, other, msg=name)


@few_methods
@each_section
def test_data_parallel_without_a_gpu_is_the_model(method: PruningMethod, section: str) -> None:
    model = in_training(method, section)
    same(differentiated(model, nn.DataParallel(model)), differentiated(model))
    model.eval()
    assert torch.equal(nn.DataParallel(model)(x_of(1)), model(x_of(1)))


class WithPenalty(nn.Module):
    """The whole loss of a step as a module."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).square().mean() + pquant.penalty(self.model)


def two_sets(model: nn.Module) -> list[dict[str, Tensor]]:
    """Return the model's parameters, and others near them."""
    generator = torch.Generator().manual_seed(3)
    own = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    return [own, {name: value + 0.3 * torch.randn(value.shape, generator=generator) for name, value in own.items()}]


def stacked(sets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([one[name] for one in sets]) for name in sets[0]}


def differentiated_by_name(loss: Callable[[dict[str, Tensor]], Tensor], values: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a loss of named values, and its gradients by name; 0 for values without one."""
    leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
    result = loss(leaves)
    result.backward()
    return result.detach(), {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()}


@few_methods
@each_section
@pytest.mark.parametrize("training", [True, False])
def test_functional_call_computes_with_the_parameters_that_it_is_given(training: bool, method: PruningMethod, section: str) -> None:
    model = in_training(method, section).train(training)
    for values in two_sets(model):
        other = copy.deepcopy(model)
        with torch.no_grad():
            for name, parameter in other.named_parameters():
                parameter.copy_(values[name])
        leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
        y, expected = functional_call(model, leaves, (x_of(1),)), other(x_of(1))
        assert torch.equal(y, expected)
        y.square().sum().backward()
        expected.square().sum().backward()
        for name, parameter in other.named_parameters():
            mine = leaves[name].grad
            assert (mine is None) == (parameter.grad is None), name
            assert mine is None or torch.equal(mine, parameter.grad), name


@few_methods
@each_section
@pytest.mark.parametrize("training", [True, False])
def test_in_vmap_stacked_parameters_give_the_outputs_of_each(training: bool, method: PruningMethod, section: str) -> None:
    model = in_training(method, section).train(training)
    sets, x = two_sets(model), x_of(1)
    with torch.no_grad():
        at_once = torch.vmap(lambda values: functional_call(model, values, (x,)))(stacked(sets))
        expected = torch.stack([functional_call(model, values, (x,)) for values in sets])
    torch.testing.assert_close(at_once, expected)
    assert not torch.equal(expected[0], expected[1])


@few_methods
@each_section
@pytest.mark.parametrize("penalty", [False, True])
def test_in_vmap_stacked_parameters_have_the_gradients_of_each(penalty: bool, method: PruningMethod, section: str) -> None:
    model = in_training(method, section)
    module = WithPenalty(model) if penalty else model
    sets, x = two_sets(module), x_of(1)

    def loss(values: dict[str, Tensor]) -> Tensor:
        return functional_call(module, values, (x,)).square().sum()

    grads, losses = torch.vmap(torch.func.grad_and_value(loss))(stacked(sets))
    for n, values in enumerate(sets):
        expected, gradients = differentiated_by_name(loss, values)
        torch.testing.assert_close(losses[n], expected)
        for name, gradient in gradients.items():
            torch.testing.assert_close(grads[name][n], gradient, rtol=1e-4, atol=1e-5, msg=name)


@few_methods
@each_section
@pytest.mark.parametrize("penalty", [False, True])
def test_gradients_reach_the_stacked_parameters_of_vmap(penalty: bool, method: PruningMethod, section: str) -> None:
    model = in_training(method, section)
    module = WithPenalty(model) if penalty else model
    sets, x = two_sets(module), x_of(1)

    def loss(values: dict[str, Tensor]) -> Tensor:
        return functional_call(module, values, (x,)).square().sum()

    _, together = differentiated_by_name(lambda values: torch.vmap(loss)(values).sum(), stacked(sets))
    for n, values in enumerate(sets):
        for name, gradient in differentiated_by_name(loss, values)[1].items():
            torch.testing.assert_close(together[name][n], gradient, rtol=1e-4, atol=1e-5, msg=name)


@few_methods
@each_section
def test_gradients_of_each_example_add_up_to_that_of_the_batch(method: PruningMethod, section: str) -> None:
    model, x = in_training(method, section), x_of(1)
    values = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(values: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, values, (x[None],)).square().sum()

    each = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(values, x)
    model.zero_grad()
    model(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert each[name].shape == (8, *parameter.shape)
        torch.testing.assert_close(each[name].sum(0), expected, rtol=1e-4, atol=1e-4, msg=name)


EXPORTED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dense": (Net, (8, 6)),
    "conv": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 3)),
        (4, 2, 8, 8),
    ),
}


@pytest.mark.slow
@each_section
@pytest.mark.parametrize("kind", EXPORTED)
def test_a_finalized_model_is_exported_and_runs_alike(kind: str, section: str) -> None:
    torch.manual_seed(0)
    make, shape = EXPORTED[kind]
    x = torch.randn(shape)
    model = pquant.compress(make(), DST(threshold_init=0.05), SECTIONS[section], x)
    pquant.set_stage(model, pquant.Stage.TRAIN)
    (model(x).square().mean() + pquant.penalty(model)).backward()
    final, test = pquant.finalize(model), 2 * torch.randn(shape)
    program = torch.export.export(final, (x,))
    assert torch.equal(program.module()(test), final(test)) and torch.equal(final(test), model.eval()(test))


def test_a_small_finalized_model_is_exported_and_runs_alike() -> None:
    torch.manual_seed(0)
    x = x_of()
    final = pquant.finalize(pquant.compress(nn.Sequential(nn.Linear(6, 4), nn.ReLU()), DST(), SECTIONS["fixed"], x))
    assert torch.equal(torch.export.export(final, (x,)).module()(x_of(1)), final(x_of(1)))


def saved_and_loaded(model: nn.Module) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@two_sections
@each_method
def test_copies_and_loaded_states_go_on_alike_in_every_stage(method: PruningMethod, section: str) -> None:
    model = made(method, section)
    for stage in pquant.Stage:
        pquant.set_stage(model, stage, pquant.Horizon(1, 4))
        steps(model, 2)
        loaded = made(method, section, seed=5)
        loaded.load_state_dict(saved_and_loaded(model))
        twin = copy.deepcopy(model)
        y, counted = model.eval()(x_of(1)), pquant.ebops(model)
        for other in (twin, loaded):
            assert torch.equal(other.eval()(x_of(1)), y) and pquant.ebops(other) == counted and pquant.sparsity(other) == pquant.sparsity(model)
            assert torch.equal(pquant.finalize(other)(x_of(1)), y)
            assert not {p.data_ptr() for p in other.parameters() if p.numel()} & {p.data_ptr() for p in model.parameters() if p.numel()}
        before = model.stem.weight.detach().clone()
        for one in (model, twin, loaded):
            steps(one, 2)
            if stage is pquant.Stage.TRAIN:
                pquant.on_epoch_end(one)
        assert not torch.equal(model.stem.weight, before)
        for name, value in model.state_dict().items():
            for other in (twin, loaded):
                theirs = other.state_dict()[name]
                assert torch.equal(theirs, value) if isinstance(value, Tensor) else theirs == value, (stage, name)


@each_section
@few_methods
def test_parameters_of_the_model_are_ordinary_ones(method: PruningMethod, section: str) -> None:
    model = in_training(method, section)
    for name, parameter in model.named_parameters():
        assert type(parameter) is nn.Parameter and parameter.is_leaf and parameter.untyped_storage().nbytes() == 4 * parameter.numel(), name
    before = model(x_of(1)).detach()
    with torch.no_grad():
        model.head.weight.data = model.head.weight.detach() * 2 + 0.2
    changed = model(x_of(1)).detach()
    assert not torch.equal(changed, before), "another tensor in a parameter's place is seen"
    model.head.weight = nn.Parameter(model.head.weight.detach() * -1)
    assert not torch.equal(model(x_of(1)), changed), "and another parameter"
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    same(differentiated(model), differentiated(copy.deepcopy(model)))


def check_compiled(method: PruningMethod, section: str, backend: str) -> None:
    torch._dynamo.reset()
    model = in_training(method, section)
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, fullgraph=True, backend=backend)
    (y, grads), (expected, others) = differentiated(twin, compiled), differentiated(model)
    torch.testing.assert_close(y, expected)
    assert grads.keys() == others.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, others[name], rtol=1e-4, atol=1e-4, msg=name)
    twin.eval(), model.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x_of(2)), model(x_of(2)))


@pytest.mark.slow
@two_sections
@each_method
def test_a_model_is_one_graph_and_equals_the_eager_one(method: PruningMethod, section: str) -> None:
    check_compiled(method, section, "aot_eager")


@pytest.mark.slow
@two_sections
@few_methods
def test_a_compiled_model_equals_the_eager_one(method: PruningMethod, section: str) -> None:
    check_compiled(method, section, "inductor")


@pytest.mark.slow
@two_sections
@few_methods
def test_a_compiled_step_with_its_penalty_equals_the_eager_one(method: PruningMethod, section: str) -> None:
    torch._dynamo.reset()
    model = in_training(method, section)
    twin, penalty = copy.deepcopy(model), {}
    losses = []
    for one, wrap in ((model, lambda f: f), (twin, partial(torch.compile, fullgraph=True))):
        penalty[one] = Penalty(one)
        losses.append(wrap(lambda x, one=one: one(x).square().mean() + penalty[one]()))
    for step in range(2):
        for one, loss in zip((model, twin), losses, strict=True):
            one.zero_grad()
            loss(x_of(step)).backward()
        for (name, mine), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
            assert (mine.grad is None) == (theirs.grad is None), name
            if mine.grad is not None:
                torch.testing.assert_close(theirs.grad, mine.grad, rtol=1e-4, atol=1e-4, msg=name)
        with torch.no_grad():
            for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
                if parameter.grad is not None:
                    parameter.sub_(0.01 * parameter.grad)
                    other.copy_(parameter)
