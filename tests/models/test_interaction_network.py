import pytest
import torch

from pquant.errors import ConfigError
from pquant.models import InteractionNetwork


def test_each_particle_sums_the_effects_of_all_others() -> None:
    torch.manual_seed(0)
    net = InteractionNetwork(input_shape=(4, 3), num_outputs=5, edge=[7, 6], node=[8], head=[9])
    (x,) = torch.randn(1, 4, 3)
    nodes = []
    for receiver in range(4):
        effects = [net.edge(torch.cat((x[receiver], x[sender]))) for sender in range(4) if sender != receiver]
        nodes.append(net.node(torch.cat((x[receiver], torch.stack(effects).sum(0)))))
    assert torch.allclose(net(x[None])[0], net.head(torch.stack(nodes).sum(0)), atol=1e-6)


def test_the_pairs_are_no_part_of_the_saved_weights() -> None:
    net = InteractionNetwork(input_shape=(3, 2), num_outputs=5)
    assert list(zip(net.receivers.tolist(), net.senders.tolist(), strict=True)) == [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
    assert not {"receivers", "senders"} & net.state_dict().keys()


def test_a_single_particle_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"InteractionNetwork needs at least 2 particles, the data has \(1, 3\)"):
        InteractionNetwork(input_shape=(1, 3), num_outputs=5)
