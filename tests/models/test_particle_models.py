"""What all models of particles have in common."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pquant
from pquant.errors import ConfigError
from pquant.models import CNN1d, DeepSets, InteractionNetwork, JEDILinear, ParticleTransformer
from pquant.pruning import DST

from ..test_config import build

Model = Callable[..., nn.Module]
SETS: list[Model] = [DeepSets, InteractionNetwork, JEDILinear, ParticleTransformer]
ALL: list[Model] = [*SETS, CNN1d]
NAMES = ["deep_sets", "interaction_network", "jedi_linear", "particle_transformer", "conv1d"]
SHORT = "training.pretraining_epochs=0 training.epochs=1 training.fine_tuning_epochs=0 training.batch_size=32 progress=quiet".split()


def made(model: Model, **fields: Any) -> nn.Module:
    torch.manual_seed(0)
    return model(input_shape=(8, 3), num_outputs=5, **fields).eval()


@pytest.mark.parametrize("model", ALL)
def test_particles_to_outputs(model: Model) -> None:
    assert made(model)(torch.zeros(2, 8, 3)).shape == (2, 5)


@pytest.mark.parametrize("model", SETS)
def test_the_order_of_the_particles_does_not_matter_and_each_counts(model: Model) -> None:
    net, x = made(model), torch.randn(4, 8, 3)
    y = net(x)
    assert torch.allclose(net(x[:, torch.randperm(8)]), y, atol=1e-5)
    for particle in range(8):
        moved = x.clone()
        moved[:, particle] += 1
        assert not torch.allclose(net(moved), y, atol=1e-5)


def test_the_order_matters_along_a_sequence() -> None:
    net, x = made(CNN1d), torch.randn(4, 8, 3)
    assert not torch.allclose(net(x.flip(1)), net(x), atol=1e-3)


@pytest.mark.parametrize("model", ALL)
def test_each_jet_gets_its_own_output(model: Model) -> None:
    net, x = made(model), torch.randn(4, 8, 3)
    assert torch.allclose(net(x)[1:3], net(x[1:3]), atol=1e-5)


@pytest.mark.parametrize("model", ALL)
def test_a_gradient_reaches_every_parameter(model: Model) -> None:
    net = made(model).train()
    net(torch.randn(64, 8, 3)).square().sum().backward()
    assert [name for name, parameter in net.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []


@pytest.mark.parametrize("model", ALL)
@pytest.mark.parametrize("shape", [(16,), (3, 8, 8)])
def test_inputs_that_are_not_particles_are_refused(model: Model, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"needs (particles|sequences) \(.*\), the data has \(.*\): try data=constituents"):
        model(input_shape=shape, num_outputs=5)


@pytest.mark.parametrize(
    ("model", "field"),
    [
        (DeepSets, "phi"),
        (DeepSets, "rho"),
        (InteractionNetwork, "edge"),
        (InteractionNetwork, "node"),
        (InteractionNetwork, "head"),
        (JEDILinear, "interactions"),
        (JEDILinear, "head"),
        (CNN1d, "channels"),
        (CNN1d, "head"),
    ],
)
@pytest.mark.parametrize("widths", [[], [4, 0], [4, -1], [2.5], "32", 32, [None], [True]])
def test_widths_must_be_positive(model: Model, field: str, widths: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{model.__name__}.{field} must be a list of one or more positive widths, got "):
        made(model, **{field: widths})


@pytest.mark.parametrize("model", ALL)
def test_a_compressed_model_is_the_float_one_without_methods_and_prunes_its_dense_layers(model: Model) -> None:
    net, x = made(model), torch.randn(4, 8, 3)
    assert torch.allclose(pquant.compress(net, example_input=x)(x), net(x), atol=1e-6)
    pruned = pquant.compress(net, DST(alpha=5e-3), None, x)
    plain = [name for name, layer in net.named_modules() if type(layer) in (nn.Linear, nn.Conv1d)]
    assert set(plain) <= set(pquant.layers.pruned_layers(pruned))


@pytest.mark.parametrize("name", NAMES)
def test_a_short_run_of_each_from_a_file(name: str, tmp_path: Path) -> None:
    draw, y = np.random.default_rng(0), np.arange(60) % 3
    np.savez(tmp_path / "a.npz", x=draw.normal(y[:, None, None], 1, (60, 4, 3)).astype(np.float16), y=np.array(list("abc"))[y])
    experiment = build("data=constituents", f"data.path={tmp_path / 'a.npz'}", f"model={name}", *SHORT)
    summary = experiment.run(pquant.experiment.Run(tmp_path / "run", {}, ""))
    assert 0 <= summary["test/accuracy"] <= 1 and summary["ebops"] > 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["params"] == summary["params"]
