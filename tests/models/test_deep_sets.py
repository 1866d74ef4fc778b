import pytest
import torch

from pquant.errors import ConfigError
from pquant.models import DeepSets


def test_rho_of_the_sum_or_mean_of_phi() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3)
    for pool, factor in (("sum", 1.0), ("mean", 0.2)):
        net = DeepSets(input_shape=(5, 3), num_outputs=4, phi=[7, 6], rho=[8], pool=pool)  # type: ignore[arg-type]
        total = sum(net.phi(x[:, particle]) for particle in range(5))
        assert torch.allclose(net(x), net.rho(factor * total), atol=1e-6)
        shapes = [tuple(value.shape) for name, value in net.named_parameters() if name.endswith("weight")]
        assert shapes == [(7, 3), (6, 7), (8, 6), (4, 8)]


def test_an_unknown_pool_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"DeepSets.pool: unknown pool 'maen': did you mean 'mean'\?"):
        DeepSets(input_shape=(5, 3), num_outputs=4, pool="maen")  # type: ignore[arg-type]
