from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pquant
from pquant.errors import ConfigError
from pquant.models import Autoencoder

from ..test_config import build


def test_widths_down_to_the_latent_values_and_back() -> None:
    net = Autoencoder(input_shape=(16,), num_outputs=16, hidden=[12, 8], latent=2)
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in layers] == [12, 8, 2, 8, 12, 16]
    assert type(net.encoder[-1]) is type(net.decoder[-1]) is nn.Linear
    assert net.encoder(torch.zeros(3, 16)).shape == (3, 2)


def test_inputs_of_more_axes_are_flattened() -> None:
    net, x = Autoencoder(input_shape=(4, 3), num_outputs=12), torch.randn(2, 4, 3)
    assert torch.equal(net(x), net(x.flatten(1))) and net(x).shape == (2, 12)


def test_a_gradient_reaches_every_parameter() -> None:
    net = Autoencoder(input_shape=(6,), num_outputs=6)
    net(torch.randn(64, 6)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_outputs": 5}, r"needs targets that are the 16 features, the data needs 5 outputs: try data.reconstruct=true"),
        ({"hidden": []}, r"Autoencoder.hidden must be a list of one or more positive widths, got \[\]"),
        ({"latent": 0}, r"Autoencoder.latent must be an integer from 1 to 65536, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Autoencoder(**{"input_shape": (16,), "num_outputs": 16} | fields)


def test_a_run_learns_to_reconstruct_features_that_depend_on_two_values(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    hidden = draw.normal(size=(1000, 2))
    np.savez(tmp_path / "a.npz", x=hidden @ draw.normal(size=(2, 6)))
    table = ["data=table", f"data.path={tmp_path / 'a.npz'}", "data.target=null", "data.reconstruct=true", "model=autoencoder", "progress=quiet"]
    lengths = ["training.pretraining_epochs=10", "training.epochs=0", "training.fine_tuning_epochs=0", "optimizer.lr=0.01", "pruning=none"]
    summary = build(*table, *lengths).run(pquant.experiment.Run(tmp_path / "run", {}, ""))
    assert summary["test/rmse"] < 0.3
    assert "test/accuracy" not in summary
