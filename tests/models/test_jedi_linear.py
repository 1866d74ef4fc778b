import torch

from pquant.models import JEDILinear
from pquant.models.jedi_linear import LinearInteraction


def test_an_interaction_is_the_mean_of_a_linear_edge_function_over_all_pairs() -> None:
    torch.manual_seed(0)
    layer, x = LinearInteraction(3, 6), torch.randn(2, 5, 3)
    edges = layer.own(x)[:, :, None] + layer.all(x)[:, None, :]
    assert edges.shape == (2, 5, 5, 6)
    assert torch.allclose(layer(x), edges.mean(2).relu(), atol=1e-6)


def test_the_widths_of_the_interactions_and_the_head() -> None:
    net = JEDILinear(input_shape=(5, 3), num_outputs=4, interactions=[7, 6], head=[8])
    shapes = {name: tuple(value.shape) for name, value in net.named_parameters() if name.endswith("weight")}
    assert list(shapes.values()) == [(7, 3), (7, 3), (6, 7), (6, 7), (8, 6), (4, 8)]
    x = torch.randn(2, 5, 3)
    assert torch.equal(net(x), net.head(net.interactions(x).mean(1)))
