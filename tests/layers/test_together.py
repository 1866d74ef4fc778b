"""All parameters in one pass are, bit for bit, what each layer computes by itself."""

import copy

import pytest
import torch
from torch import Tensor, nn

import pquant
from pquant.layers import CompressedLayer
from pquant.layers.together import part
from pquant.pruning import DST, PDP, ActivationPruning, AutoSparse, NoPruning, PruningMethod
from pquant.pruning.dst import DSTPruner
from pquant.quantization import FixedPointQuantizer, Quantization

BITS = {
    "default_data_keep_negatives": True,
    "default_data_integer_bits": 3,
    "default_data_fractional_bits": 4,
    "default_weight_keep_negatives": True,
    "default_weight_fractional_bits": 5,
}
SECTIONS = {
    "fixed": Quantization(**BITS),
    "quantized first": Quantization(**BITS, pruning_first=False),
    "mixed": Quantization(**BITS, layer_specific={"0": {"weight": {"f": 3}, "bias": {"enable": False}}, "5": {"weight": {"round_mode": "TRN"}}}),
    "by weight": Quantization(**BITS, granularity="per_weight"),
    "trained": Quantization(**BITS, use_hgq=True, hgq_beta=1e-6, granularity="per_weight", data_granularity="per_channel"),
    "trained by channel": Quantization(**BITS, use_hgq=True, granularity="per_channel"),
    "wrapping": Quantization(**BITS, use_hgq=True, overflow_mode_parameters="WRAP"),
    "off": Quantization(enable_quantization=False),
}
METHODS = [
    NoPruning(),
    DST(threshold_init=0.1),
    AutoSparse(threshold_init=-2.0),
    PDP(structured_pruning=True, epsilon=1.0, sparsity=0.4),
    ActivationPruning(t_start_collecting_batch=0, t_delta=1, threshold=0.5),
]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    first, last = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
    last.weight = first.weight
    return nn.Sequential(nn.Conv1d(2, 3, 3, bias=True), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), first, nn.Tanh(), last)


def stepped(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    y = model(x)
    y.square().sum().backward()
    return y, {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_outputs_and_gradients_are_those_of_the_layers_alone(section: str, method: PruningMethod) -> None:
    x = torch.randn(8, 2, 6)
    if method.rescales and not SECTIONS[section].pruning_first:
        pytest.skip("refused")
    together = pquant.compress(net(), method, SECTIONS[section], x)
    alone = copy.deepcopy(together)
    part(alone)
    assert len(together._forward_pre_hooks) == len(together._forward_hooks) == 1 and not alone._forward_pre_hooks
    for stage in (pquant.Stage.PRETRAIN, pquant.Stage.TRAIN, None, pquant.Stage.FINETUNE):
        for model in (together, alone):
            model.train().zero_grad()
            if stage is None:
                pquant.on_batch_end(model)
            else:
                pquant.set_stage(model, stage, pquant.Horizon(2, 2))
        (y, grads), (expected, others) = stepped(together, x), stepped(alone, x)
        assert torch.equal(y, expected)
        assert grads.keys() == others.keys()
        for name in grads:
            torch.testing.assert_close(grads[name], others[name], msg=name)
        assert torch.equal(together.eval()(x), alone.eval()(x))


def test_a_copy_computes_with_its_own_weights() -> None:
    x = torch.randn(8, 2, 6)
    model = pquant.compress(net(), None, SECTIONS["fixed"], x)
    twin = copy.deepcopy(model)
    before = model(x)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(model(x), before) and not twin(x).any()


def test_nothing_is_left_after_a_forward_or_its_failure() -> None:
    x = torch.randn(8, 2, 6)
    model = pquant.compress(net(), None, SECTIONS["fixed"], x)
    for given in (x, torch.randn(8, 3, 6)):
        try:
            model(given)
        except RuntimeError:
            assert given is not x
        assert all(layer.ready is None for layer in model.modules() if isinstance(layer, CompressedLayer))


def test_hooks_of_others_stay_when_the_model_is_finalized() -> None:
    x = torch.randn(8, 2, 6)
    model = pquant.compress(net(), None, SECTIONS["fixed"], x)
    seen: list[int] = []
    model.register_forward_hook(lambda *_: seen.append(1))
    final = pquant.finalize(model)
    final(x)
    assert seen == [1] and len(final._forward_pre_hooks) == 0 and len(final._forward_hooks) == 1


def test_a_subclass_that_gives_another_weight_is_heard() -> None:
    class Halved(DSTPruner):
        def soft_weight(self, weight: Tensor) -> Tensor:
            return weight / 2

    class Doubled(FixedPointQuantizer):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    x = torch.randn(8, 2, 6)
    model = pquant.compress(net(), DST(), SECTIONS["fixed"], x)
    model[0].pruner.__class__, model[3].weight_quantizer.__class__ = Halved, Doubled
    alone = copy.deepcopy(model)
    part(alone)
    for one in (model, alone):
        pquant.set_stage(one.train(), pquant.Stage.TRAIN)
    assert torch.equal(model(x), alone(x))
